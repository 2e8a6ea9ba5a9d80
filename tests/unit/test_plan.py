"""The plan: which rows when, and whose; invariants 1 and 2 as properties."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.balance import proportional_shares
from engine.plan import Plan
from native import BucketShape

buckets = st.lists(st.integers(0, 400), min_size=1, max_size=4).filter(any)


def make_plan(rows: list[int], batch_size: int, seed: int = 7, **options: object) -> Plan:
    layout = [BucketShape(bound=8 * (i + 1), rows=count, chunk_rows=30, row_bytes=16) for i, count in enumerate(rows)]
    return Plan(layout=layout, batch_size=batch_size, seed=seed, **options)


@settings(max_examples=60, deadline=None)
@given(
    rows=buckets,
    batch_size=st.integers(1, 128),
    weights=st.lists(st.integers(0, 9), min_size=1, max_size=5).filter(any),
    epoch=st.integers(0, 3),
    window=st.sampled_from([1, 2000, 1 << 28]),
)
def test_every_row_is_used_exactly_once_an_epoch_whatever_the_shares(rows, batch_size, weights, epoch, window):
    plan = make_plan(rows, batch_size, window_bytes=window)
    shares = proportional_shares(weights, batch_size)
    seen: list[tuple[int, int]] = []
    short = [0] * len(rows)
    for batch in plan.epoch(epoch):
        parts = [plan.local_rows(epoch, batch, shares, rank) for rank in range(len(shares))]
        together = np.concatenate(parts)
        assert np.array_equal(together, plan.rows(epoch, batch))
        chunks = together // 30  # in chunk order: those of a chunk stand together, ascending
        assert len(np.unique(chunks)) == 1 + np.count_nonzero(np.diff(chunks))
        assert np.all((np.diff(together) > 0) | (np.diff(chunks) != 0))
        short[batch.bucket] += batch.rows < batch_size
        seen += [(batch.bucket, int(row)) for row in together]
    assert sorted(seen) == [(bucket, row) for bucket, count in enumerate(rows) for row in range(count)]
    assert max(short) <= 1
    assert len(list(plan.epoch(epoch))) == plan.steps_per_epoch


def test_the_sequence_depends_on_seed_and_epoch_and_on_nothing_else():
    def order(seed: int, epoch: int) -> list[tuple[int, list[int]]]:
        plan = make_plan([200, 100], 16, seed)
        return [(batch.bucket, plan.rows(epoch, batch).tolist()) for batch in plan.epoch(epoch)]

    assert order(7, 0) == order(7, 0)
    assert order(7, 0) != order(7, 1)
    assert order(7, 0) != order(8, 0)


def test_any_step_is_reached_directly():
    plan = make_plan([10**9, 10**8], 1024)
    batch = plan.batch(3, plan.steps_per_epoch - 1)
    assert len(plan.rows(3, batch)) == batch.rows
    assert list(make_plan([50], 8).epoch(0, start=5)) == list(make_plan([50], 8).epoch(0))[5:]


def test_without_shuffle_rows_stand_in_their_stored_order():
    plan = make_plan([20, 9], 8, shuffle=False)
    rows = [(batch.bucket, row) for batch in plan.epoch(0) for row in plan.rows(0, batch)]
    assert rows == [(0, row) for row in range(20)] + [(1, row) for row in range(9)]


def test_slices_of_a_full_batch_are_the_shares_and_a_short_one_is_shared_out():
    plan = make_plan([100], 12)
    assert [part.stop - part.start for part in plan.slices(12, [6, 0, 5, 1])] == [6, 0, 5, 1]
    assert [part.stop - part.start for part in plan.slices(4, [6, 0, 5, 1])] == [2, 0, 1, 1]
    with pytest.raises(ValueError, match="add up to 11, not to the global batch of 12"):
        plan.slices(12, [6, 5])


def test_a_slice_touches_few_chunks():
    layout = [BucketShape(bound=8, rows=64_000, chunk_rows=1000, row_bytes=16)]
    plan = Plan(layout=layout, batch_size=1024, seed=1, window_bytes=16_000 * 16)  # windows of 16 chunks
    touched = [len(np.unique(plan.local_rows(0, batch, [256] * 4, 1) // 1000)) for batch in plan.epoch(0, start=1)]
    assert np.median(touched) <= 6  # a quarter of 16 chunks, and its two edges


@pytest.mark.parametrize(
    "options",
    [
        {"batch_size": 0, "rows": 5},
        {"batch_size": 4, "rows": 0},
        {"batch_size": 4},
        {"batch_size": 4, "rows": 3, "layout": []},
    ],
)
def test_impossible_plans_are_refused(options):
    with pytest.raises(ValueError, match=r"."):
        Plan(seed=1, **options)


def test_the_window_is_shared_out_by_the_sizes_of_the_buckets():
    layout = [BucketShape(bound, rows, 64, 2 * bound) for bound, rows in ((8, 64 * 500), (256, 64 * 3), (64, 0))]
    size = sum(shape.rows * shape.row_bytes for shape in layout)

    def windows(window_bytes: int) -> list[int]:
        return Plan(layout=layout, batch_size=10, seed=1, window_bytes=window_bytes).windows

    assert windows(size)[:2] == [500, 3]  # a split that is not larger is one window per bucket
    assert windows(size // 5 + 1)[:2] == [100, 1]
    assert windows(1)[:2] == [1, 1]


def test_rows_of_ones_own_are_shuffled_fully():
    plan = Plan(rows=1000, batch_size=10, seed=3)
    first = plan.rows(0, plan.batch(0, 0))
    assert first.max() - first.min() > 300
