"""Reading ahead: the batches of the plan, through changes of shares, and from any point again."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

import engine
import native
from engine.input import MapStyleSource, Prefetcher, ReviewSource
from tests.synthetic import write_dataset


@pytest.fixture
def data(tmp_path):
    write_dataset(tmp_path / "data")
    with native.open_dataset(tmp_path / "data") as opened:
        yield opened


def take(batches: Prefetcher, count: int) -> list[tuple[Any, ...]]:
    """What is in the next batches, copied: their buffers are reused."""
    found = []
    for _ in range(count):
        batch = batches.next()
        found.append((batch.whole, batch.rows, [value.clone() for value in batch.inputs]))
    return found


def same(one: list[tuple[Any, ...]], other: list[tuple[Any, ...]]) -> bool:
    return len(one) == len(other) and all(
        a[:2] == b[:2] and all(torch.equal(x, y) for x, y in zip(a[2], b[2], strict=True))
        for a, b in zip(one, other, strict=True)
    )


def test_new_shares_begin_after_what_was_read_ahead_and_a_resumed_run_sees_the_same(data):
    plan = engine.Plan(layout=data.layout, batch_size=40, seed=3)

    def start(schedule: list[tuple[int, ...]], epoch: int, step: int) -> Prefetcher:
        return Prefetcher(plan, ReviewSource(data, plan), 1, schedule, epoch, step, 2)

    batches = start([(20, 20)], 0, 0)
    take(batches, 5)
    batches.set_shares((39, 1))
    schedule = batches.schedule()
    assert schedule == [((20, 20), (20, 20)), ((20, 20), (20, 20)), ((39, 1), (39, 1))]
    rest = take(batches, 2 * plan.steps_per_epoch - 5)
    full = [(rows, whole.rows) for whole, rows, _ in rest if whole.rows == 40]
    assert full[0] == (20, 40)
    assert full[-1] == (1, 40)
    batches.close()
    again = start(schedule, 0, 5)
    assert same(take(again, 2 * plan.steps_per_epoch - 5), rest)
    again.close()


@pytest.mark.parametrize("native_reader", [True, False])
def test_each_bucket_has_shares_of_its_own(data, native_reader):
    plan = engine.Plan(layout=data.layout, batch_size=40, seed=3)
    source = ReviewSource(data, plan)
    if not native_reader:
        source = partial(ReviewSource.__call__, source)
    batches = Prefetcher(plan, source, 1, [((20, 20), (20, 20)), ((30, 10), (40, 0))], 0, 0, 2)
    found = [(whole.bucket, rows) for whole, rows, _ in take(batches, 2 * plan.steps_per_epoch) if whole.rows == 40]
    assert found[0][1] == 20
    assert set(found[1:]) == {(0, 10), (1, 0)}
    batches.set_shares((1, 39))
    assert batches.schedule()[-1] == ((1, 39), (1, 39))
    with pytest.raises(ValueError, match="shares of 3 buckets were given for 2"):
        batches.set_shares(((20, 20),) * 3)
    batches.close()


def test_the_batch_in_hand_stays_as_it_is_while_others_are_read(data):
    plan = engine.Plan(layout=data.layout, batch_size=40, seed=3)
    batches = Prefetcher(plan, ReviewSource(data, plan), 0, [(40,)], 0, 0, 3)
    for _ in range(3 * plan.steps_per_epoch - 2):
        batch = batches.next()
        before = batch.inputs[0].clone()
        while not batches._reader._batches.ready:
            time.sleep(0.001)
        time.sleep(0.002)  # those behind it are read as well, as far as the ring has room
        assert torch.equal(batch.inputs[0], before)
    batches.close()


def test_errors_of_reading_come_out_of_next(data):
    plan = engine.Plan(layout=data.layout, batch_size=40, seed=3)
    batches = Prefetcher(plan, ReviewSource(data, plan), 0, [(40,)], 0, 0, 1)
    data.close()
    with pytest.raises(native.DatasetError, match="closed"):
        take(batches, 10)
    batches.close()


def test_a_plan_for_other_rows_is_refused(data):
    with pytest.raises(ValueError, match="not made for this data of 1133 rows"):
        ReviewSource(data, engine.Plan(rows=1000, batch_size=8, seed=1))
    with pytest.raises(ValueError, match="not made for this data of 5 rows"):
        MapStyleSource([0] * 5, engine.Plan(layout=data.layout, batch_size=8, seed=1))


def test_reviews_by_row_number_and_map_style_data(data):
    plan = engine.Plan(rows=len(data), batch_size=64, seed=1)
    inputs, target = ReviewSource(data, plan)(0, np.array([1132, 4]))
    assert inputs[0].shape == (2, 16)
    assert target.tolist() == [int(stars >= 4) for stars in data.read([1132, 4]).stars]
    items = [(torch.tensor([float(i)]), i % 2) for i in range(6)]
    inputs, target = MapStyleSource(items, engine.Plan(rows=6, batch_size=4, seed=1))(0, np.array([5, 2]))
    assert inputs[0].tolist() == [[5.0], [2.0]]
    assert target.tolist() == [1, 0]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_batches_on_a_gpu_are_those_on_the_cpu(data):
    plan = engine.Plan(layout=data.layout, batch_size=40, seed=3)
    device = torch.device("cuda", 0)
    there = Prefetcher(plan, ReviewSource(data, plan, device=device), 0, [(40,)], 0, 0, 2, device)
    here = Prefetcher(plan, ReviewSource(data, plan), 0, [(40,)], 0, 0, 2)
    for _ in range(2 * plan.steps_per_epoch):
        far, near = there.next(), here.next()
        far.hand_over()
        assert far.whole == near.whole
        for one, other in zip((*far.inputs, far.target), (*near.inputs, near.target), strict=True):
            assert one.device.type == "cuda"
            assert torch.equal(one.cpu(), other)
        torch.cuda.synchronize()  # as the trainer does at the end of a step
    there.close()
    here.close()
