"""The cost model of each rank: what is known of it is found again from noisy timings."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from engine.shares import optimal_shares
from engine.speed import ProfilePoint, SpeedModel
from engine.speed_fit import along, fit_relative, monotone

BOUNDS = (32, 64, 100)
BATCH = 512
Truth = Callable[[float, float], float]
"""seconds of so many rows of one length"""


def affine(speed: float = 1.0, fixed: float = 0.002, per_length: float = 2e-5, per_step: float = 3e-6) -> Truth:
    return lambda rows, bound: (fixed + per_length * bound + per_step * rows * bound) / speed


def profile_of(truth: Truth, noise: float = 0.0, seed: int = 0) -> list[ProfilePoint]:
    rng = np.random.default_rng(seed)
    return [
        ProfilePoint(bound, rows, truth(rows, bound) * (1 + noise * rng.normal()))
        for bound in (100, 32)
        for rows in (8, 16, 32, 64, 128, 256)
    ]


class Bench:
    """Ranks that time what the truth says, with noise, and a model that looks at it."""

    def __init__(self, truths: Sequence[Truth], noise: float = 0.05, seed: int = 1, profiled: bool = False) -> None:
        self.truths, self.noise, self.rng = list(truths), noise, np.random.default_rng(seed)
        profile = [profile_of(truth, noise, seed + rank) for rank, truth in enumerate(truths)] if profiled else ()
        self.model = SpeedModel(BOUNDS, len(truths), profile)

    def look(self, table: Sequence[Sequence[int]], steps: int = 10, hiccup: float = 1.0) -> list[int]:
        """Ranks whose change the model has seen in a look of so many steps, `hiccup` times as long in one of them."""
        found = np.zeros((len(self.truths), len(BOUNDS), 4))
        buckets = self.rng.integers(0, len(BOUNDS), steps)
        for rank, truth in enumerate(self.truths):
            for bucket, bound in enumerate(BOUNDS):
                rows = table[bucket][rank]
                times = truth(rows, bound) * (1 + self.noise * self.rng.normal(size=(buckets == bucket).sum()))
                if rank == 0 and len(times) and bucket == buckets[0]:
                    times[0] *= hiccup
                if rows and len(times):
                    found[rank, bucket] = len(times), rows, times.mean(), ((times - times.mean()) ** 2).sum()
        return self.model.observe(found)

    def error(self, rank: int, rows: Sequence[int]) -> float:
        """Largest relative error of the predicted seconds."""
        return max(
            abs(self.predicted(rank, n, bucket) / self.truths[rank](n, bound) - 1)
            for bucket, bound in enumerate(BOUNDS)
            for n in rows
        )

    def predicted(self, rank: int, rows: int, bucket: int) -> float:
        return self.model.costs(bucket, BATCH).one(rank, rows)


def even(ranks: int) -> list[list[int]]:
    return [[BATCH // ranks] * ranks] * len(BOUNDS)


def test_the_profile_alone_gives_the_truth():
    exact = Bench([affine(), affine(0.3), affine(1, 0.05, 0.0)], noise=0.0, profiled=True)
    for rank in range(3):
        assert exact.error(rank, (1, 10, 100, 512)) < 1e-6
    noisy = Bench([affine(), affine(0.3)], noise=0.05, profiled=True)
    for rank in range(2):
        assert noisy.error(rank, (50, 100, 300)) < 0.1


def test_a_profiled_model_gets_better_by_timings():
    for seed in range(5):
        bench = Bench([affine(), affine(0.4)], noise=0.05, seed=seed, profiled=True)
        for _ in range(30):
            assert bench.look(even(2)) == []
        for rank in range(2):
            assert bench.error(rank, (256,)) < 0.03
            assert bench.error(rank, (128, 384)) < 0.08


def test_without_a_profile_the_level_is_right_where_it_was_timed():
    for seed in range(5):
        bench = Bench([affine(), affine(0.4)], noise=0.02, seed=seed)
        bench.look(even(2))
        assert bench.error(0, (256,)) < 0.2  # in proportion to rows, in all lengths
        for _ in range(20):
            bench.look(even(2))
        for rank in range(2):
            assert bench.error(rank, (256,)) < 0.06


def test_without_a_profile_the_shape_follows_from_other_shares():
    for seed in range(5):
        bench = Bench([affine(), affine(0.4)], noise=0.02, seed=seed)
        for rows in (256, 100, 400, 180, 256, 300) * 5:
            bench.look([[rows, BATCH - rows]] * len(BOUNDS))
        for rank in range(2):
            assert bench.error(rank, (112, 256, 400)) < 0.04


def test_a_fixed_cost_is_found_from_different_numbers_of_rows():
    bench = Bench([affine(1, 0.02)], noise=0.01)
    for rows in (400, 100, 250, 50) * 8:
        bench.look([[rows]] * len(BOUNDS))
    assert bench.error(0, (50, 200, 512)) < 0.05
    assert bench.predicted(0, 1, 0) > 0.015


def test_drift_below_what_is_called_a_change_is_followed_and_the_old_forgotten():
    bench = Bench([affine()], noise=0.02)
    for _ in range(60):
        bench.look(even(1))
    level = 1.0
    for _ in range(60):
        level *= 0.998  # 11 % in 600 steps, never 10 % in a look
        bench.truths[0] = affine(level)
        assert bench.look(even(1)) == []
    for _ in range(60):
        bench.look(even(1))
    assert bench.error(0, (BATCH,)) < 0.02


def test_steps_count_less_the_older_they_are():
    bench = Bench([affine()])
    for _ in range(200):
        bench.look(even(1))
    assert 190 < bench.model.steps_R[0] < 215


@pytest.mark.parametrize("profiled", [False, True])
@pytest.mark.parametrize("factor", [3.0, 1 / 3])
def test_a_threefold_change_is_taken_after_one_look(profiled, factor):
    for seed in range(5):
        bench = Bench([affine(), affine()], noise=0.05, seed=seed, profiled=profiled)
        for _ in range(20):
            assert bench.look(even(2)) == []
        bench.truths[1] = affine(1 / factor)
        assert bench.look(even(2)) == [1]
        assert bench.error(1, (256,)) < 0.08
        assert bench.error(0, (256,)) < 0.05
        # The shape is kept, the old level forgotten; it is not called a change again.
        assert bench.model.steps_R[1] <= 10
        for _ in range(10):
            assert bench.look(even(2)) == []
        assert bench.error(1, (256,)) < 0.05


def test_noise_is_not_taken_for_a_change():
    for noise, profiled in ((0.05, True), (0.05, False), (0.2, False)):
        bench = Bench([affine()] * 8, noise=noise, profiled=profiled)
        assert sum(len(bench.look(even(8))) for _ in range(100)) == 0


@pytest.mark.parametrize("noise", [0.1, 0.2])
def test_a_noisy_profile_is_no_reason_for_changes(noise):
    bench = Bench([affine()] * 8, noise=noise, profiled=True)
    assert sum(len(bench.look(even(8))) for _ in range(100)) <= 2


@pytest.mark.parametrize("profiled", [False, True])
@pytest.mark.parametrize("hiccup", [1.5, 4.0, 20.0])
def test_one_hiccup_moves_the_model_little(profiled, hiccup):
    for seed in range(5):
        bench = Bench([affine(), affine()], noise=0.05, seed=seed, profiled=profiled)
        for _ in range(20):
            bench.look(even(2))
        before = bench.predicted(0, 256, 1)
        assert bench.look(even(2), hiccup=hiccup) == []
        assert bench.predicted(0, 256, 1) == pytest.approx(before, rel=0.1)
        for _ in range(3):
            bench.look(even(2))
        assert bench.predicted(0, 256, 1) == pytest.approx(before, rel=0.06)


def cliff(rows: float, bound: float) -> float:
    """A GPU short of memory: beyond 200 rows of 100 tokens it pages."""
    steps = rows * bound
    return 0.002 + 1e-6 * steps + (0.2 + 2e-5 * (steps - 20_000) if steps > 20_000 else 0.0)


def test_where_a_line_misfits_the_profile_itself_is_the_shape():
    points = [ProfilePoint(100, rows, cliff(rows, 100)) for rows in (8, 16, 32, 64, 128, 200, 201, 256, 512)]
    model = SpeedModel((100,), 2, [points, profile_of(affine())])
    costs = model.costs(0, BATCH)
    for point in points:
        assert costs.one(0, point.rows) == pytest.approx(point.seconds, rel=1e-6)
    seconds = [costs.one(0, rows) for rows in range(1, 600, 7)]
    assert seconds == sorted(seconds)
    # The cliff decides: up to it, and no further.
    assert 190 <= optimal_shares(costs, BATCH)[0] <= 201
    # Its level follows what is timed, its shape stays.
    looks = np.zeros((2, 1, 4))
    looks[0, 0] = 50, 128, 1.08 * cliff(128, 100), 0.0
    for _ in range(5):
        assert model.observe(looks) == []
    costs = model.costs(0, BATCH)
    assert costs.one(0, 128) == pytest.approx(1.08 * cliff(128, 100), rel=0.01)
    assert costs.one(0, 512) == pytest.approx(1.08 * cliff(512, 100), rel=0.01)


def test_a_curve_that_falls_is_made_monotone_and_never_ends_level():
    curve = monotone(np.array([4.0, 1.0, 2.0, 3.0, 2.0]), np.array([5.0, 1.0, 4.0, 2.0, 2.0]))
    assert curve[0].tolist() == [1, 2, 3, 4]
    assert curve[1].tolist() == pytest.approx([1.0, 2.0, 2.0, 5.0])
    level = monotone(np.array([1.0, 2.0, 4.0]), np.array([1.0, 9.0, 4.0]))
    assert along(level, np.array([4.0, 5.0])).tolist() == pytest.approx([4.0, 5.0])


def test_parameters_are_never_below_0_and_a_useless_one_is_left_out():
    x = np.array([[1.0, 32, rows * 32] for rows in (8, 16, 64, 256)])
    theta, off = fit_relative(x, x[:, 2] * 1e-6, (2,))
    assert theta.tolist() == pytest.approx([0, 0, 1e-6])
    assert abs(off).max() < 1e-9
    theta, _ = fit_relative(x, x[:, 2] * 1e-6 - 1e-4, (2,))  # the line would cross 0
    assert (theta >= 0).all()


def test_a_hiccup_in_the_profile_is_outvoted():
    points = profile_of(affine())
    spoilt = [*points[:7], ProfilePoint(points[7].bound, points[7].rows, points[7].seconds * 5), *points[8:]]
    truth = affine()
    costs = SpeedModel(BOUNDS, 1, [spoilt]).costs(2, BATCH)
    assert costs.one(0, 256) == pytest.approx(truth(256, 100), rel=0.1)


def test_a_rank_that_was_never_timed_is_taken_to_be_as_fast_as_the_slowest():
    bench = Bench([affine(), affine(0.25), affine()])
    assert not bench.model.known().any()
    with pytest.raises(ValueError, match="no rank has timed anything yet"):
        bench.model.costs(0, BATCH)
    bench.look([[256, 256, 0]] * 3)
    assert bench.model.known().tolist() == [True, True, False]
    for bucket in range(3):
        assert bench.predicted(2, 100, bucket) == bench.predicted(1, 100, bucket)
    assert np.isinf(bench.model.errors()).tolist() == [False, False, True]


def test_errors_shrink_with_steps_and_with_less_noise():
    errors = []
    for noise in (0.02, 0.2):
        bench = Bench([affine()], noise=noise)
        for looks in (1, 4, 15):
            while bench.model.steps_R[0] < looks * 9:
                bench.look(even(1))
            errors.append(float(bench.model.errors()[0]))
    assert errors[0] > errors[1] > errors[2]
    assert errors[3] > errors[4] > errors[5]
    assert errors[2] < errors[5] / 3
    # About noise / sqrt(steps); MEMORY_STEPS limits the steps.
    assert errors[5] == pytest.approx(0.2 / np.sqrt(15 * 9), rel=0.35)


def test_a_look_without_steps_changes_nothing():
    bench = Bench([affine(), affine()])
    bench.look(even(2))
    before, errors = bench.predicted(0, 100, 1), bench.model.errors().tolist()
    for _ in range(100):
        assert bench.model.observe(np.zeros((2, 3, 4))) == []
    assert bench.predicted(0, 100, 1) == pytest.approx(before, rel=1e-3)
    assert bench.model.errors().tolist() == errors


def test_forgetting_keeps_the_shape_where_little_was_timed_and_takes_a_whole_profile():
    bench = Bench([affine(), affine()], noise=0.0, profiled=True)
    for _ in range(5):
        bench.look(even(2))
    fast = affine(4)
    bench.truths[1] = fast
    bench.model.forget(1, [ProfilePoint(100, 8, fast(8, 100)), ProfilePoint(32, 8, fast(8, 32))])
    assert bench.error(1, (8, 100, 400)) < 1e-3
    assert bench.error(0, (8, 100, 400)) < 1e-3
    assert bench.model.steps_R[1] == 0
    other = affine(1, 0.1, 0.0, 1e-5)
    bench.truths[1] = other
    bench.model.forget(1, profile_of(other))
    assert bench.error(1, (8, 100, 400)) < 1e-3
    # A rank of which nothing was known is one now.
    model = SpeedModel(BOUNDS, 2)
    model.forget(0, [ProfilePoint(100, 8, fast(8, 100))])
    assert model.known().tolist() == [True, False]


def test_forgetting_keeps_the_shape_of_a_curve():
    points = [ProfilePoint(100, rows, cliff(rows, 100)) for rows in (8, 16, 32, 64, 128, 200, 201, 256, 512)]
    model = SpeedModel((100,), 1, [points])
    model.forget(0, [ProfilePoint(100, 8, 2 * cliff(8, 100))])
    for rows in (8, 128, 512):
        assert model.costs(0, BATCH).one(0, rows) == pytest.approx(2 * cliff(rows, 100), rel=0.01)
