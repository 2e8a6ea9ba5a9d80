"""The order of rows against its slow twin; what a shuffle promises; what a rank's slice costs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.plan import Plan
from native import BucketShape
from native.order import BatchOrder
from tests.twins import twin_batches


def make_order(
    rows: list[int], batch_size: int = 1, chunk_rows: int = 10, window: int = 4, seed: int = 7
) -> BatchOrder:
    return BatchOrder(
        rows=rows,
        chunk_rows=[chunk_rows] * len(rows),
        windows=[window] * len(rows),
        batch_size=batch_size,
        seed=seed,
    )


def order_of(order: BatchOrder, epoch: int = 0) -> np.ndarray:
    """All rows of a first bucket, batch by batch."""
    return np.concatenate([order.rows(epoch, 0, k) for k in range(order.steps)])


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.integers(0, 300), min_size=1, max_size=4).filter(any),
    chunk_rows=st.integers(1, 50),
    window=st.integers(1, 12),
    batch_size=st.integers(1, 150),
    seed=st.integers(-(2**70), 2**70),
    epoch=st.integers(0, 3),
)
def test_every_batch_equals_that_of_the_order_built_whole(rows, chunk_rows, window, batch_size, seed, epoch):
    order = make_order(rows, batch_size, chunk_rows, window, seed)
    shapes = [chunk_rows] * len(rows), [window] * len(rows)
    whole = twin_batches(rows, *shapes, batch_size, seed & (2**64 - 1), epoch)
    assert order.steps == len(whole)
    for step in np.random.default_rng(1).permutation(order.steps)[:20]:  # any step, without those before it
        bucket, number, count = order.batch(epoch, step)
        assert (bucket, number, order.rows(epoch, bucket, number).tolist()) == whole[step]
        assert count == len(whole[step][2])


@pytest.mark.parametrize(("rows", "chunk_rows", "window"), [(5000, 100, 16), (4321, 50, 100), (1024, 200, 4)])
def test_windows_in_strata_equal_their_twin(rows, chunk_rows, window):
    order = make_order([rows], 64, chunk_rows, window)
    whole = twin_batches([rows], [chunk_rows], [window], 64, 7, 2)
    for step, (bucket, number, expected) in enumerate(whole):
        assert order.batch(2, step)[:2] == (bucket, number)
        assert order.rows(2, bucket, number).tolist() == expected


def test_batches_of_a_bucket_come_in_their_order_mixed_with_the_others():
    order = make_order([40_000, 20_000, 100, 0, 5], 10)
    seen = [order.batch(1, step)[:2] for step in range(order.steps)]
    for bucket, count in enumerate([4000, 2000, 10, 0, 1]):
        assert [number for b, number in seen if b == bucket] == list(range(count))
    halves = [sum(b == 1 for b, _ in half) for half in (seen[:3000], seen[3000:])]
    assert min(halves) > 990  # not one bucket after the other
    # what a bucket does at one step says nothing of the next
    follows = np.corrcoef([b == 0 for b, _ in seen[:-1]], [b == 0 for b, _ in seen[1:]])[0, 1]
    assert abs(follows) < 0.05


def test_a_short_batch_can_come_anywhere():
    places = [
        next(step for step in range(order.steps) if order.batch(0, step)[0] == 1) / order.steps
        for order in (make_order([4000, 3], 10, seed=seed) for seed in range(40))
    ]
    assert min(places) < 0.2
    assert max(places) > 0.8


@pytest.mark.parametrize("rows", [2048, 2060])  # whole strata, and 12 rows beyond
def test_every_row_is_equally_likely_at_every_position_of_a_window_in_strata(rows):
    parts, seeds = 16, 400
    counts = np.zeros((parts, parts))
    for seed in range(seeds):
        order = order_of(make_order([rows], 1, 100, 1000, seed))
        assert sorted(order) == list(range(rows))
        np.add.at(counts, (np.arange(rows) * parts // rows, order * parts // rows), 1)
    # Strata even out the counts within a seed: their spread is far below that of independent draws, never above.
    expected = np.outer(np.bincount(np.arange(rows) * parts // rows), np.bincount(np.arange(rows) * parts // rows))
    expected = expected * seeds / rows
    assert ((counts - expected) ** 2 / expected).sum() < (parts - 1) ** 2
    ends = np.zeros(rows)
    for seed in range(2000):  # the rows beyond whole strata, at the end, are other ones each time
        order = make_order([rows], 1, 100, 1000, seed)
        ends[order.rows(0, 0, rows - 1)[0]] += 1
    assert ends.max() <= 8


def test_consecutive_rows_of_a_window_in_strata_are_unrelated():
    rows = 40_000
    order = order_of(make_order([rows], 1, 500, 1000))
    for apart in (1, 7, 31, 32, 33, 64, 1000):
        related = np.corrcoef(order[:-apart], order[apart:])[0, 1]
        assert abs(related) < 0.06, apart  # drawn without replacement from 32 strata: -1/31 for near neighbours


def test_epochs_are_independent():
    n = 5000
    first, second = (order_of(make_order([n], 1, 100, 20), epoch) for epoch in (0, 1))
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.05
    assert (first == second).mean() < 0.005


def test_a_batch_of_a_trillion_rows_is_computed_at_once():
    rows = 10**12 + 7
    order = BatchOrder(rows=[rows], chunk_rows=[2048], windows=[64], batch_size=1000, seed=7)
    assert order.steps == 10**9 + 1
    bucket, number, count = order.batch(5, order.steps - 1)
    found = order.rows(5, bucket, number)
    assert len(set(found.tolist())) == count
    assert found.min() >= 0
    assert found.max() < rows
    assert len(order.rows(5, 0, 10**8)) == 1000


@pytest.mark.parametrize(
    "options",
    [
        {"rows": [0]},
        {"rows": []},
        {"rows": [-1]},
        {"rows": [5], "chunk_rows": 0},
        {"rows": [5], "window": 0},
        {"rows": [5], "batch_size": 0},
        {"rows": [2**47], "batch_size": 1},
    ],
)
def test_impossible_orders_are_refused(options):
    with pytest.raises(ValueError, match=r"must be|there must be|more than 2\^40"):
        make_order(**options)


@pytest.mark.parametrize(
    "call",
    [lambda o: o.batch(0, 5), lambda o: o.rows(0, 1, 0), lambda o: o.rows(0, 0, 5), lambda o: o.rows(0, 0, 2**62)],
)
def test_batches_that_are_not_there_are_refused(call):
    with pytest.raises(IndexError):
        call(make_order([5]))


@pytest.mark.parametrize(("batch_size", "window_chunks"), [(1024, 64), (2048, 64), (4096, 40), (512, 200)])
@pytest.mark.parametrize("shares", [(1,) * 8, (5, 1, 1, 1, 2, 3, 1, 2)])
def test_eight_ranks_touch_little_more_than_their_part_of_each_window(batch_size, window_chunks, shares):
    chunk_rows = 2048
    layout = [BucketShape(100, 3 * window_chunks * chunk_rows + 17, chunk_rows, 200)]
    plan = Plan(layout=layout, batch_size=batch_size, seed=3, window_bytes=window_chunks * chunk_rows * 200)
    assert plan.windows == [window_chunks]
    full = [share * batch_size // sum(shares) for share in shares]
    full[0] += batch_size - sum(full)
    touched: list[set[int]] = [set() for _ in shares]
    for batch in plan.epoch(0):
        rows = plan.rows(0, batch)
        for rank, part in enumerate(plan.slices(batch.rows, full)):
            touched[rank] |= set(np.unique(rows[part] // chunk_rows).tolist())
    chunks = -(-layout[0].rows // chunk_rows)
    borders = 0 if len(set(shares)) == 1 else 6  # shares of a chunk or two a window: their two borders count
    for rank, share in enumerate(full):
        assert len(touched[rank]) <= 1.5 * chunks * share / batch_size + borders, rank
