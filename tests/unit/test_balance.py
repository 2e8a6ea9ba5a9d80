"""When shares change, and to what: a balancer in a world of ranks whose speed is known."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from engine.balance import EPOCH_THRESHOLD, MIN_GAIN, Balancer, Decision
from engine.shares import Cost, Costs, Table, as_table, even_shares, mean_shares, optimal_shares
from engine.speed import ProfilePoint

BATCH = 512
BOUNDS = (32, 64, 100)
BATCHES = (30, 40, 30)
LOOK = 10
WINDOW = 50
LATER = 4
"""steps after a decision at which its shares begin"""


@dataclass
class World:
    """Ranks that take (fixed + per_length * L + per_step * rows * L) / speed seconds for a batch, with noise."""

    speeds: list[float]
    noise: float = 0.0
    seed: int = 0
    fixed: Sequence[float] = ()
    profiled: bool = True
    bounds: Sequence[int] = BOUNDS
    batches: Sequence[float] = BATCHES
    caps: list[int] | None = None
    per_length: float = 2e-5
    per_step: float = 3e-6
    changes: list[tuple[int, Decision]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)
        self.fixed = list(self.fixed or [0.002] * len(self.speeds))
        profile = [self.profile(rank) for rank in range(len(self.speeds))] if self.profiled else ()
        self.table: Table = as_table(even_shares(len(self.speeds), BATCH, self.caps), len(self.bounds))
        self.balancer = Balancer(self.bounds, self.batches, self.table, self.caps, profile)
        self.step = 0
        self._coming: tuple[int, Table] | None = None
        self._clear()
        if self.profiled:
            self._decide()
            self.table = self.balancer.table

    def seconds(self, rank: int, rows: int, bound: int) -> float:
        if not rows:
            return 0.0
        return (self.fixed[rank] + self.per_length * bound + self.per_step * rows * bound) / self.speeds[rank]

    def noisy(self, rank: int, rows: int, bound: int) -> float:
        return self.seconds(rank, rows, bound) * (1 + self.noise * self.rng.normal())

    def profile(self, rank: int) -> list[ProfilePoint]:
        sizes = [8 << power for power in range(6)]
        bounds = (self.bounds[-1], self.bounds[0]) if len(self.bounds) > 1 else self.bounds
        return [ProfilePoint(bound, rows, self.noisy(rank, rows, bound)) for bound in bounds for rows in sizes]

    def run(self, steps: int) -> None:
        """Train so many steps, with a look and a decision at every tenth."""
        chance = np.array(self.batches) / sum(self.batches)
        for _ in range(steps):
            self.step += 1
            bucket = int(self.rng.choice(len(self.bounds), p=chance))
            for rank, rows in enumerate(self.table[bucket]):
                if rows:
                    seconds = self.noisy(rank, rows, self.bounds[bucket])
                    self._timed.setdefault((rank, bucket), (rows, []))[1].append(seconds)
            if self._coming and self._coming[0] == self.step:
                self.table, self._coming = self._coming[1], None
                self._clear()
            if self.step % LOOK == 0:
                self.balancer.observe(self.looks())
                self._clear()
                self._decide()

    def looks(self) -> np.ndarray:
        found = np.zeros((len(self.speeds), len(self.bounds), 4))
        for (rank, bucket), (rows, seconds) in self._timed.items():
            found[rank, bucket] = len(seconds), rows, np.mean(seconds), np.var(seconds) * len(seconds)
        return found

    def optimum(self) -> float:
        """Seconds of an epoch at the best shares there are."""
        best = []
        for bound in self.bounds:
            one, two = ([self.seconds(rank, rows, bound) for rank in range(len(self.speeds))] for rows in (1, 2))
            costs = [Cost.affine(2 * first - second, second - first) for first, second in zip(one, two, strict=True)]
            best.append(optimal_shares(Costs.of(costs), BATCH, self.caps))
        return self.epoch_seconds(tuple(best))

    def epoch_seconds(self, table: Table) -> float:
        return sum(
            count * max(self.seconds(rank, rows, bound) for rank, rows in enumerate(shares))
            for count, bound, shares in zip(self.batches, self.bounds, table, strict=True)
        )

    def away(self) -> float:
        """How much longer an epoch takes than at the best shares."""
        return self.epoch_seconds(self.balancer.table) / self.optimum() - 1

    def _decide(self) -> None:
        decision = self.balancer.decide(self.step, WINDOW)
        assert all(sum(shares) == BATCH for shares in decision.table)
        assert decision.table == self.balancer.table
        assert 0 <= decision.predicted_gain < 1
        if decision.changed:
            self.changes.append((self.step, decision))
            self._coming = self.step + LATER, decision.table

    def _clear(self) -> None:
        self._timed: dict[tuple[int, int], tuple[int, list[float]]] = {}


def steady(rows: Sequence[Sequence[int]], seconds: Sequence[Sequence[float]], steps: int = 20) -> np.ndarray:
    """Looks without scatter: rows and seconds per rank and bucket."""
    shape = np.array(rows)
    return np.stack([np.where(shape > 0, steps, 0), shape, np.array(seconds), np.zeros(shape.shape)], axis=2)


def one_bucket(table: Sequence[int], caps: list[int] | None = None) -> Balancer:
    return Balancer((10,), (1,), (tuple(table),), caps)


def test_a_rank_that_is_three_times_as_slow_gets_a_third():
    balancer = one_bucket((100, 100, 100))
    balancer.observe(steady([[100], [100], [100]], [[0.1], [0.3], [0.1]]))
    decision = balancer.decide(20, WINDOW)
    assert decision.changed
    assert sorted(decision.table[0]) in ([43, 128, 129], [42, 129, 129])
    assert decision.table[0][1] in (42, 43)
    assert decision.predicted_gain == pytest.approx(1 - 3 / 7, abs=0.01)
    assert decision.reason == f"rank 1 was the slowest; its share goes from 100 to {decision.table[0][1]}"


@pytest.mark.parametrize("profiled", [True, False])
@pytest.mark.parametrize("noise", [0.0, 0.02])
def test_repeated_looks_converge_on_the_optimum_though_batches_have_fixed_costs(profiled, noise):
    for seed in range(3):
        world = World([1, 0.25, 0.5], noise, seed, fixed=[0.01, 0.005, 0.02], profiled=profiled)
        world.run(200)
        assert world.away() < 0.03
        assert len(world.changes) < 8


@pytest.mark.parametrize("speeds", [[1, 0.56], [1, 1, 1, 0.56], [1, 1 / 4.8], [1, 0.5, 0.003]], ids=str)
def test_the_profile_alone_comes_near_the_optimum(speeds):
    world = World(speeds, noise=0.03)
    assert world.changes[0][0] == 0
    assert world.away() < 0.06
    world.run(150)
    assert world.away() < 0.03


@dataclass
class Disturbed(World):
    """Another job shared the cores during the profile: some of its batches took up to six times as long."""

    per_row: float = 0.0
    """seconds of a row, however long"""

    def seconds(self, rank: int, rows: int, bound: int) -> float:
        return super().seconds(rank, rows, bound) + self.per_row * rows / self.speeds[rank]

    def profile(self, rank: int) -> list[ProfilePoint]:
        return [
            replace(point, seconds=point.seconds * (self.rng.uniform(1.5, 6) if self.rng.random() < 0.3 else 1))
            for point in super().profile(rank)
        ]


@pytest.mark.parametrize(("per_row", "per_step"), [(0.0, 3e-6), (2e-4, 1e-12)])
def test_a_disturbed_profile_is_made_good_by_training(per_row, per_step):
    away = []
    for seed in range(12):
        world = Disturbed([1, 1, 1 / 3], 0.05, seed, per_row=per_row, per_step=per_step)
        world.run(60)
        away.append(world.away())
        # The slow rank never gets more than its part, by a mistaken shape least of all.
        assert mean_shares(world.balancer.table, BATCHES)[2] < BATCH / 4
    assert max(away) < 0.12
    assert np.median(away) < 0.05


def test_a_rank_whose_first_row_takes_longer_than_the_others_need_gets_none():
    world = World([1, 1, 1], fixed=[0.002, 2.0, 0.002])
    assert [shares[1] for shares in world.balancer.table] == [0, 0, 0]
    world.run(100)
    assert world.away() == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("profiled", [True, False])
@pytest.mark.parametrize("ranks", [2, 4, 16])
def test_an_even_cluster_is_left_alone(ranks, profiled):
    for seed in range(4):
        world = World([1.0] * ranks, 0.05, seed, profiled=profiled)
        world.run(1000)
        assert len(world.changes) <= 1
        assert world.away() < 0.06


def test_a_gain_of_less_than_two_percent_is_left():
    table = (100, 100)
    for seconds, changed in ((1.03, False), (1.08, True)):
        balancer = one_bucket(table)
        for _ in range(100):  # so many steps that noise is out of the question
            balancer.observe(steady([[100], [100]], [[0.1], [0.1 * seconds]]))
        decision = balancer.decide(2000, WINDOW)
        assert decision.changed is changed
        if not changed:
            assert 0 < decision.predicted_gain < MIN_GAIN
            assert decision.reason.startswith("kept: a change would gain 1.0%")
            assert decision.table == (table,)


def test_what_may_be_noise_is_not_acted_on_but_at_an_epoch_a_large_gain_is():
    def noisy() -> Balancer:
        balancer = one_bucket((100, 100))
        # Rank 1 stalls for 2.4 s in some of its steps: 0.8 s on average for 0.1 s.
        looks = steady([[100], [100]], [[0.8], [2.4]], steps=30)
        looks[1, 0, 3] = 29 * 2.9**2
        balancer.observe(looks)
        return balancer

    balancer = noisy()
    decision = balancer.decide(30, WINDOW)
    assert not decision.changed
    assert "noise" in decision.reason
    assert decision.predicted_gain > EPOCH_THRESHOLD
    decision = noisy().decide(30, WINDOW, EPOCH_THRESHOLD)
    assert decision.changed
    assert decision.table[0][1] < 67


def test_more_ranks_are_more_reason_for_doubt():
    """The slowest of many ranks stands out by chance."""
    told = []
    for ranks in (2, 64):
        balancer = one_bucket((8,) * ranks)
        balancer.observe(steady([[8]] * ranks, [[0.1]] * (ranks - 1) + [[0.11]], steps=10))
        told.append(balancer._noise(balancer.table))
    assert told[1] > 1.2 * told[0]


@pytest.mark.parametrize("ranks", [2, 4, 16])
def test_a_rank_that_was_timed_briefly_after_its_idleness_comes_back(ranks):
    """Its own speed is known badly; that the others would have fewer rows is certain enough."""
    share, rest = divmod(512, ranks - 1)
    balancer = one_bucket((*(share + (rank < rest) for rank in range(ranks - 1)), 0))
    balancer.speeds.forget(ranks - 1, [ProfilePoint(10, rows, 100 + rows / 1e3) for rows in (8, 32)])
    for _ in range(10):
        balancer.observe(steady([[rows] for rows in balancer.table[0]], [[rows / 1e3] for rows in balancer.table[0]]))
    assert not balancer.decide(200, WINDOW).changed
    balancer.speeds.forget(ranks - 1, [ProfilePoint(10, rows, rows / 1e3) for rows in (8, 32)])
    decision = balancer.decide(200, WINDOW)
    assert decision.changed
    assert decision.table[0][-1] == pytest.approx(512 / ranks, abs=1)


def test_few_steps_of_a_difference_are_not_enough():
    for steps, changed in ((1, False), (50, True)):
        balancer = one_bucket((100, 100))
        balancer.observe(steady([[100], [100]], [[0.1], [0.12]], steps=steps))
        assert balancer.decide(steps, WINDOW).changed is changed


def test_a_change_that_is_taken_back_goes_half_the_way():
    balancer = one_bucket((100, 100))

    def look(speeds: tuple[float, float], shares: tuple[int, ...], looks: int = 15) -> None:
        for _ in range(looks):
            seconds = [[rows / 1000 / speed] for rows, speed in zip(shares, speeds, strict=True)]
            found = steady([[rows] for rows in shares], seconds, steps=10)
            found[:, :, 3] = 10 * (0.05 * found[:, :, 2]) ** 2
            balancer.observe(found)

    look((1.0, 0.85), (100, 100))
    (first,) = balancer.decide(150, WINDOW).table
    assert first[0] == pytest.approx(200 / 1.85, abs=1)
    # The other one has become a little slow.
    look((1.0, 1.03), first, looks=60)
    (aim,) = (optimal_shares(balancer.speeds.costs(0, 200), 200),)
    assert aim[0] < first[0] - 4
    decision = balancer.decide(750, WINDOW)
    assert decision.changed
    assert decision.reason.endswith(", half the way back")
    assert decision.table[0][0] == pytest.approx((first[0] + aim[0]) / 2, abs=1)
    assert 0 < decision.predicted_gain < 0.1
    # The other half is the same direction again, and is not halved.
    (second,) = decision.table
    look((1.0, 1.2), second, looks=60)
    assert "half" not in balancer.decide(1500, WINDOW).reason


def test_a_large_change_in_the_other_direction_goes_the_whole_way():
    world = World([1, 1 / 3])
    world.run(60)
    world.speeds = [1 / 3, 1]
    world.run(60)
    assert world.away() < 0.03
    assert not any("half" in decision.reason for _, decision in world.changes)


@pytest.mark.parametrize("profiled", [True, False])
def test_a_threefold_slow_down_is_acted_on_within_two_looks(profiled):
    for seed in range(5):
        world = World([1.0] * 4, 0.05, seed, profiled=profiled)
        world.run(203)
        known = len(world.changes)
        world.speeds[2] = 1 / 3
        world.run(17)  # two looks, the first of which is half of the time before
        assert len(world.changes) > known
        decision = world.changes[-1][1]
        assert any(
            decision.reason.startswith("rank 2 was the slowest") for step, decision in world.changes if step > 203
        )
        assert decision.predicted_gain > 0.1
        # One window and two steps after the slow-down:
        world.run(35)
        assert world.away() < (0.05 if profiled else 0.15)
        # And when it is over, the rank gets its rows back.
        world.speeds[2] = 1.0
        world.run(52)
        assert world.away() < 0.1


def test_buckets_differ_where_a_fixed_cost_matters():
    """A long start-up weighs more in short batches: there the rank gets less."""
    world = World([1, 1], fixed=[0.0, 0.02])
    shares = [row[1] for row in world.balancer.table]
    assert shares[0] < shares[1] < shares[2] < BATCH / 2
    assert world.away() < 1e-3
    # A rank that is slow in proportion has the same part of every length.
    world = World([1, 0.5], fixed=[0.0, 0.0], per_length=0.0)
    assert len(set(world.balancer.table)) == 1


def test_the_slowest_rank_that_is_told_is_that_of_the_whole_epoch():
    # Rank 0 has a long start-up, which weighs in short batches; rank 1 is slow per row, which weighs in long ones.
    for batches, slow in (((90, 1), 0), ((1, 90), 1)):
        world = World([1, 0.5], fixed=[0.02, 0.0], bounds=(10, 100), batches=batches)
        assert world.changes[0][1].reason.startswith(f"rank {slow} was the slowest")


def test_caps_are_kept():
    world = World([1, 0.25, 0.25], noise=0.05, caps=[200, 512, 512])
    world.run(200)
    assert all(shares[0] == 200 for shares in world.balancer.table)
    assert world.away() < 0.03


def test_a_lowered_cap_is_obeyed_at_once_and_told():
    world = World([1, 1, 1], noise=0.05)
    world.run(50)
    assert not world.changes
    world.balancer.lower_caps([0, 100, 0])
    decision = world.balancer.decide(50, WINDOW)
    assert decision.changed
    assert "out of memory" in decision.reason
    assert all(shares[1] == 100 for shares in decision.table)
    assert all(abs(shares[0] - shares[2]) <= 40 for shares in decision.table)
    # It stays, and it never rises.
    world.balancer.lower_caps([0, 0, 0])
    world.balancer.lower_caps([0, 300, 0])
    assert world.balancer.caps == [BATCH, 100, BATCH]
    assert all(shares[1] <= 100 for shares in world.balancer.decide(60, WINDOW).table)
    world.balancer.lower_caps([0, 90, 0])
    assert all(shares[1] <= 90 for shares in world.balancer.decide(70, WINDOW).table)
    # Small as the gain is; and a change that is forced is not damped.
    assert "half" not in decision.reason


def test_limits_of_memory_that_leave_no_room_together_are_kept_in_proportion():
    """In micro-batches every rank can do more than what once did not fit."""
    balancer = one_bucket((50, 50), [60, 90])
    balancer.lower_caps([30, 30])
    assert balancer.caps == [50, 50]
    balancer.lower_caps([0, 20])
    assert sum(balancer.caps) >= 100
    assert all(new <= old for new, old in zip(balancer.caps, [60, 90], strict=True))


def test_without_timings_the_shares_stay():
    balancer = one_bucket((60, 40))
    decision = balancer.decide(5, WINDOW)
    assert (decision.table, decision.changed) == (((60, 40),), False)
    assert "too few steps" in decision.reason
    balancer.observe(np.zeros((2, 1, 4)))
    assert not balancer.decide(10, WINDOW).changed


def test_a_gain_is_told_once_after_a_window_and_agrees_with_what_was_predicted():
    world = World([1, 1 / 3], noise=0.02, profiled=False)
    told = []
    for _ in range(20):
        world.run(LOOK)
        told.append(world.balancer.achieved())
    found = [achieved for achieved in told if achieved]
    assert len(found) == 1
    # What was predicted when it was decided; that of a change that was overtaken by another is never told.
    step, decision = world.changes[-1]
    assert found[0].step == step
    assert found[0].predicted_gain == decision.predicted_gain
    assert told.index(found[0]) + 1 >= (step + WINDOW) // LOOK
    assert found[0].achieved_gain == pytest.approx(decision.predicted_gain, abs=0.05)
    assert World([1, 1 / 3], noise=0.02).changes[0][1].predicted_gain == pytest.approx(0.5, abs=0.05)


def test_a_change_in_vain_is_told_as_such():
    balancer = one_bucket((100, 100))
    balancer.observe(steady([[100], [100]], [[0.1], [0.2]], steps=50))
    decision = balancer.decide(50, 20)
    assert decision.changed
    (rows,) = decision.table
    assert balancer.achieved() is None
    balancer.observe(steady([[rows[0]], [rows[1]]], [[0.2], [0.1]], steps=19))
    assert balancer.achieved() is None
    balancer.observe(steady([[rows[0]], [rows[1]]], [[0.2], [0.1]], steps=1))
    achieved = balancer.achieved()
    assert achieved is not None
    assert achieved.step == 50
    assert achieved.achieved_gain == pytest.approx(0)
    assert achieved.predicted_gain == decision.predicted_gain > 0.2
    assert balancer.achieved() is None


def test_predicted_seconds_are_those_of_the_slowest_rank_over_an_epoch():
    world = World([1, 0.5], noise=0.0)
    for shares in ((256, 256), (400, 112)):
        table = as_table(shares, len(BOUNDS))
        assert world.balancer.slowest_seconds(table) == pytest.approx(world.epoch_seconds(table), rel=1e-6)
    assert math.isclose(world.balancer.slowest_seconds(world.balancer.table), world.optimum(), rel_tol=1e-3)


def test_a_rank_that_comes_back_with_another_shape_is_learnt_anew():
    """It was idle for its start-up cost, which is gone: most of what it takes now is rows."""
    world = World([1, 1], noise=0.02, fixed=[0.001, 0.3])
    assert [shares[1] for shares in world.balancer.table] == [0, 0, 0]
    world.fixed[1] = 0.001
    world.balancer.speeds.forget(1, [ProfilePoint(100, rows, world.noisy(1, rows, 100)) for rows in (8, 32)])
    world.run(300)
    assert world.away() < 0.06


def test_the_gain_of_a_change_after_a_slow_down_is_told_as_it_was():
    world = World([1.0] * 4, noise=0.02)
    world.run(200)
    world.speeds[2] = 1 / 3
    told = []
    for _ in range(12):
        world.run(LOOK)
        told.append(world.balancer.achieved())
    total = 1.0
    for _, decision in world.changes:
        total *= 1 - decision.predicted_gain
    assert total < 0.6
    # The last change is judged, be it the only one or the last of two.
    (found,) = (achieved for achieved in told if achieved)
    assert found.achieved_gain == pytest.approx(world.changes[-1][1].predicted_gain, abs=0.1)
