"""The start-up profile: what it times, what it leaves as it was, and where it stops."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import engine
from engine.compute import LocalWork, cut, out_of_memory, part_of
from engine.exchange import GradientExchange
from engine.input import LocalBatch
from engine.plan import BucketShape, GlobalBatch
from engine.precision import Precision
from engine.profile import MOST_ROWS, best_micro_steps, profile
from engine.speed import ProfilePoint
from engine.timing import ComputeTimer

CPU = torch.device("cpu")
ALONE: Any = SimpleNamespace(
    rank=0, size=1, local_size=1, device=CPU, comm=SimpleNamespace(allreduce=lambda value: value)
)
"""a session of one rank, without Horovod and MPI"""


@pytest.fixture(autouse=True)
def now(monkeypatch):
    """Time that goes on by a tenth of a millisecond when it is asked for, so that no busy machine ends a profile."""
    clock = [0.0]

    def tick() -> float:
        clock[0] += 1e-4
        return clock[0]

    monkeypatch.setattr(time, "perf_counter", tick)
    return clock


class Normed(nn.Module):
    """Has buffers that training moves."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.head = nn.BatchNorm1d(4), nn.Linear(4, 1)
        self.seen: list[int] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append(len(x))
        return self.head(self.norm(x)).squeeze(1)


def square(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return (output - target) ** 2


class Source:
    """Random rows; notes what was asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int]] = []

    def __call__(self, bucket: int, rows: np.ndarray) -> Any:
        self.asked.append((bucket, len(rows)))
        assert len(set(rows.tolist())) == len(rows)
        generator = torch.Generator().manual_seed(int(rows[0]))
        return (torch.rand(len(rows), 4, generator=generator),), torch.rand(len(rows), generator=generator)


def work_of(model: nn.Module, loss: Any = square, micro_batch: int = 0) -> LocalWork:
    exchange = GradientExchange(model, ALONE)
    return LocalWork(model, loss, Precision("float32", CPU), exchange, ComputeTimer(CPU), (1, 0), micro_batch)


def points(*per_row: tuple[int, float], bound: int = 10) -> list[ProfilePoint]:
    return [ProfilePoint(bound, rows, rows * seconds) for rows, seconds in per_row]


def test_the_micro_batch_is_the_largest_of_those_that_are_nearly_the_fastest_per_row():
    assert best_micro_steps(points((8, 5.0), (16, 2.0), (32, 1.0), (64, 1.4))) == 320
    assert best_micro_steps(points((8, 5.0), (16, 1.0), (32, 1.02), (64, 1.4))) == 320
    assert best_micro_steps(points((8, 5.0), (16, 1.0), (32, 1.05))) == 160
    assert best_micro_steps(points((8, 5.0), (16, 2.0))) == 160


def test_the_costliest_bucket_which_comes_first_decides_the_micro_batch():
    found = [*points((8, 1.0), (16, 2.0), bound=100), *points((8, 9.0), (16, 0.1), bound=5)]
    assert best_micro_steps(found) == 800


def test_a_profile_that_says_nothing_sets_no_micro_batch():
    assert best_micro_steps([]) == 0
    assert best_micro_steps(points((8, 1.0))) == 0


def test_weights_buffers_and_training_mode_stay_as_they_were():
    for training in (True, False):
        model = Normed()
        model.norm.running_mean += 0.25
        model.train(training)
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        found = profile(work_of(model), model, engine.Plan(rows=500, batch_size=100, seed=1), Source(), CPU)
        assert found
        assert model.training is model.norm.training is training
        for name, tensor in model.state_dict().items():
            assert torch.equal(tensor, before[name]), name
        assert len(before) == 7


def test_a_size_that_takes_long_per_row_is_timed_again_before_that_is_believed(now):
    plan, passes = engine.Plan(rows=500, batch_size=100, seed=1), []

    class Disturbed(Normed):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            passes.append(len(x))
            # The first passes over 32 rows are disturbed; 64 rows are slow whenever they are tried.
            disturbed = len(x) == 32 and passes.count(32) <= 3
            now[0] += len(x) * (0.003 if disturbed or len(x) == 64 else 0.001)
            return super().forward(x)

    model = Disturbed()
    found = {point.rows: point.seconds for point in profile(work_of(model), model, plan, Source(), CPU)}
    assert [passes.count(rows) for rows in (8, 16, 32, 64)] == [3, 3, 6, 6]
    assert found[32] == pytest.approx(0.032, rel=0.05)
    assert found[64] == pytest.approx(0.192, rel=0.05)


def test_powers_of_two_up_to_the_batch_are_timed_for_a_plan_over_rows_of_ones_own():
    model, source = Normed(), Source()
    found = profile(work_of(model), model, engine.Plan(rows=500, batch_size=100, seed=1), source, CPU)
    assert [point.rows for point in found] == [8, 16, 32, 64]
    assert source.asked == [(0, 8), (0, 16), (0, 32), (0, 64)]
    assert {point.bound for point in found} == {1}
    assert all(point.seconds > 0 for point in found)
    assert model.seen == [rows for rows in (8, 16, 32, 64) for _ in range(3)]  # the first of three warms up


def test_a_split_of_few_rows_is_profiled_with_what_it_has():
    model = Normed()
    found = profile(work_of(model), model, engine.Plan(rows=5, batch_size=100, seed=1), Source(), CPU)
    assert [point.rows for point in found] == [5]
    assert best_micro_steps(found) == 0


def test_no_batch_is_larger_than_the_largest_profiled_one():
    model, source = Normed(), Source()
    profile(work_of(model), model, engine.Plan(rows=4000, batch_size=4000, seed=1), source, CPU)
    assert source.asked[-1] == (0, MOST_ROWS)


def test_the_costliest_bucket_and_a_shorter_full_one_are_timed():
    layout = (*(BucketShape(bound, rows, 64, 1) for bound, rows in ((4, 20), (8, 300), (16, 100), (32, 400))),)
    model, source = Normed(), Source()
    plan = engine.Plan(layout=layout, batch_size=64, seed=1)
    found = profile(work_of(model), model, plan, source, CPU)
    # The bucket of 4 tokens holds less than a tenth of the rows.
    assert [(point.bound, point.rows) for point in found] == [(b, n) for b in (32, 8) for n in (8, 16, 32, 64)]
    assert {bucket for bucket, _ in source.asked} == {3, 1}


def test_given_sizes_are_timed_and_no_others():
    model = Normed()
    found = profile(work_of(model), model, engine.Plan(rows=500, batch_size=100, seed=1), Source(), CPU, sizes=[8])
    assert [point.rows for point in found] == [8]


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_it_stops_where_memory_ends(error):
    class Short(Normed):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if len(x) > 20:
                raise error
            return super().forward(x)

    model = Short()
    before = model.norm.running_mean.clone()
    found = profile(work_of(model), model, engine.Plan(rows=500, batch_size=100, seed=1), Source(), CPU)
    assert [point.rows for point in found] == [8, 16]
    assert torch.equal(model.norm.running_mean, before)


def test_other_errors_are_not_taken_for_want_of_memory():
    class Wrong(Normed):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    model = Wrong()
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        profile(work_of(model), model, engine.Plan(rows=500, batch_size=100, seed=1), Source(), CPU)
    assert not out_of_memory(ValueError("no"))


def test_it_stops_when_the_time_is_over_and_slow_models_are_timed_once_all_the_same(now):
    class Slow(Normed):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            now[0] += 0.01 * len(x)
            return super().forward(x)

    model = Slow()
    found = profile(work_of(model), model, engine.Plan(rows=5000, batch_size=1000, seed=1), Source(), CPU)
    # 3 passes of 8 rows, 16 rows: 0.72 s; those of 32 rows would take 0.96 s more.
    assert [(point.rows, round(point.seconds, 2)) for point in found] == [(8, 0.08), (16, 0.16)]
    now[0], Slow.forward = 0.0, lambda self, x: now.__setitem__(0, now[0] + 9.0) or Normed.forward(self, x)  # type: ignore[method-assign]
    found = profile(work_of(model), model, engine.Plan(rows=5000, batch_size=1000, seed=1), Source(), CPU)
    assert [point.rows for point in found] == [8]


def batch_of(rows: int, whole: int, bound: int = 1) -> LocalBatch:
    inputs, target = Source()(0, np.arange(rows)) if rows else ((), None)
    return LocalBatch(GlobalBatch(0, 0, whole), bound, rows, inputs, target)


def gradients(work: LocalWork, model: nn.Module, rows: int, whole: int = 100) -> list[torch.Tensor]:
    work.run(batch_of(rows, whole), 3)
    found = [parameter.grad.clone() for parameter in model.parameters()]
    work._exchange.clear()
    return found


@pytest.mark.parametrize("micro_batch", [1, 7, 30, 99, -1])
def test_micro_batches_add_up_to_the_gradient_of_all_rows(micro_batch):
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 1), nn.Flatten(0))
    whole = gradients(work_of(model), model, 40)
    assert any(gradient.abs().max() > 0 for gradient in whole)
    work = work_of(model, micro_batch=micro_batch)
    for ours, theirs in zip(gradients(work, model, 40), whole, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)
    assert all(not gradient.any() for gradient in gradients(work, model, 0))


def test_a_micro_batch_has_so_many_padded_timesteps_at_every_length():
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(4))
            self.sizes: list[int] = []

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.sizes.append(len(x))
            return x @ self.weight

    model = Counting()
    work = work_of(model)
    work.micro_steps = 160
    for bound, rows, expected in ((10, 40, [13, 13, 14]), (16, 40, [10, 10, 10, 10]), (400, 3, [1, 1, 1]), (1, 3, [3])):
        model.sizes.clear()
        work.run(batch_of(rows, 100, bound), 0)
        assert sorted(model.sizes) == expected
    # A limit by hand holds beside it.
    work.micro_batch = 9
    model.sizes.clear()
    work.run(batch_of(40, 100, 16), 0)
    assert max(model.sizes) == 8


def test_rows_are_cut_evenly_into_as_few_parts_as_possible():
    assert cut(slice(0, 10), 4) == [slice(0, 3), slice(3, 6), slice(6, 10)]
    assert cut(slice(5, 10), 99) == [slice(5, 10)]
    assert cut(slice(5, 5), 4) == []
    for rows in range(1, 40):
        for most in range(1, 12):
            parts = cut(slice(3, 3 + rows), most)
            assert [row for part in parts for row in range(part.start, part.stop)] == list(range(3, 3 + rows))
            assert len(parts) == -(-rows // most)
            assert max(part.stop - part.start for part in parts) <= most


def test_inputs_that_cannot_be_cut_are_refused_only_where_they_must_be():
    odd = [1, 2, 3]
    assert part_of(odd, slice(0, 3), 3) is odd
    with pytest.raises(ValueError, match=r"\(list\) is not a tensor .*micro_batch=-1"):
        part_of(odd, slice(0, 2), 3)
    with pytest.raises(ValueError, match="exchange='dense'"):
        part_of(torch.ones(7), slice(0, 2), 3)


def test_memory_that_runs_out_halves_the_micro_batch_until_it_fits():
    class Short(Normed):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if len(x) > limit:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return self.head(x).squeeze(1)

    limit = 1000
    torch.manual_seed(1)
    model = Short()
    whole = gradients(work_of(model), model, 40)
    limit = 6
    work = work_of(model)
    found = gradients(work, model, 40)
    for ours, theirs in zip(found, whole, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)
    assert work.micro_steps == 5
    assert work.most_rows == 40
    limit = 0
    with pytest.raises(engine.RankError, match=r"step 4: out of memory with a micro-batch of one row \(CUDA"):
        work.run(batch_of(40, 100), 3)
