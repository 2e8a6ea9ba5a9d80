"""Shares from costs: the exact integer optimum, beside brute force; other ways to cut a batch."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.shares import (
    Cost,
    Costs,
    as_table,
    checked_caps,
    even_shares,
    mean_shares,
    optimal_shares,
    proportional_shares,
)

affine = st.builds(Cost.affine, st.floats(0, 5), st.one_of(st.just(0.0), st.floats(0.01, 5)))


@st.composite
def piecewise(draw: st.DrawFn) -> Cost:
    """Monotone, with plateaus and cliffs; it may begin at 0 rows or beyond."""
    knots = draw(st.lists(st.integers(0, 16), min_size=2, max_size=5, unique=True).map(sorted))
    steps = draw(st.lists(st.sampled_from([0.0, 0.1, 1.0, 7.0]), min_size=len(knots), max_size=len(knots)))
    return Cost(tuple(map(float, knots)), tuple(itertools.accumulate(steps)))


def slowest(costs: Sequence[Cost], shares: Sequence[int]) -> float:
    return max(cost(rows) for cost, rows in zip(costs, shares, strict=True))


def splits(batch: int, caps: Sequence[int]) -> list[tuple[int, ...]]:
    return [s for s in itertools.product(*(range(min(cap, batch) + 1) for cap in caps)) if sum(s) == batch]


@settings(max_examples=250, deadline=None)
@given(
    data=st.data(),
    costs=st.lists(st.one_of(affine, piecewise()), min_size=1, max_size=4),
    batch=st.integers(1, 14),
    unequal=st.booleans(),
)
def test_shares_are_the_exact_integer_optimum_under_caps(data, costs, batch, unequal):
    caps = [batch] * len(costs)
    if unequal:
        caps = data.draw(st.lists(st.integers(0, 14), min_size=len(costs), max_size=len(costs)))
    if sum(min(cap, batch) for cap in caps) < batch:
        with pytest.raises(ValueError, match="raise a cap"):
            optimal_shares(Costs.of(costs), batch, caps)
        return
    shares = optimal_shares(Costs.of(costs), batch, caps if unequal else None)
    assert sum(shares) == batch
    assert all(0 <= share <= cap for share, cap in zip(shares, caps, strict=True))
    best = min(slowest(costs, split) for split in splits(batch, caps))
    assert slowest(costs, shares) <= best * (1 + 1e-12) + 1e-12


@settings(max_examples=60, deadline=None)
@given(
    costs=st.lists(st.tuples(st.integers(0, 4000), st.integers(1, 900)), min_size=2, max_size=40),
    batch=st.integers(1, 5000),
)
def test_no_single_row_could_lie_better_in_a_large_batch(costs, batch):
    """The certificate of optimality in a batch too large for brute force, in exact numbers.

    A split is optimal when the others have no room for one row more below its slowest time.
    """
    shares = optimal_shares(Costs.of([Cost.affine(a / 1000, b / 1000) for a, b in costs]), batch)
    assert sum(shares) == batch

    def exact(rank: int, rows: int) -> Fraction:
        return Fraction(costs[rank][0] + costs[rank][1] * rows, 1000) if rows else Fraction(0)

    worst = max(exact(rank, rows) for rank, rows in enumerate(shares))
    # Rows that fit strictly below the slowest time: were they enough for the batch, it could be faster.
    below = sum(max(0, -(-(worst * 1000 - a) // b) - 1) if worst * 1000 > a else 0 for a, b in costs)
    assert below < batch


def test_a_rank_whose_first_row_takes_longer_than_the_others_need_for_all_gets_none():
    costs = [Cost.affine(0, 1), Cost.affine(100, 1), Cost.affine(0, 1)]
    assert optimal_shares(Costs.of(costs), 10) == (5, 0, 5)
    # With a batch that takes the others longer it is worth its start-up.
    assert optimal_shares(Costs.of(costs), 300)[1] > 0
    # Caps can leave it no choice.
    assert optimal_shares(Costs.of(costs), 10, [4, 10, 4]) == (4, 2, 4)


def test_equal_ranks_share_evenly_and_a_rank_of_a_third_of_the_speed_gets_a_third():
    assert sorted(optimal_shares(Costs.of([Cost.affine(0.5, 2)] * 3), 10)) == [3, 3, 4]
    assert optimal_shares(Costs.of([Cost.affine(0, 1), Cost.affine(0, 3)]), 400) == (300, 100)
    assert optimal_shares(Costs.of([Cost.affine(0, 1)]), 17) == (17,)
    assert optimal_shares(Costs.of([Cost.affine(0, 1)] * 2), 0) == (0, 0)


def test_a_cliff_is_not_stepped_over_where_others_can_take_the_rows():
    cliff = Cost((0.0, 200.0, 201.0, 400.0), (0.0, 2.0, 20.0, 40.0))
    assert optimal_shares(Costs.of([cliff, Cost.affine(0, 0.02)]), 600) == (200, 400)


def test_no_rows_cost_nothing_and_the_last_line_goes_on():
    cost = Cost((10.0, 20.0), (3.0, 5.0))
    assert [cost(rows) for rows in (0, 10, 15, 20, 30)] == [0.0, 3.0, 4.0, 5.0, 7.0]
    assert cost(1) == pytest.approx(1.2)
    assert Cost((10.0, 20.0), (3.0, 9.0))(1) == 0.0  # the first line would go below 0
    both = Costs.of([cost, Cost((0.0, 1.0, 4.0), (1.0, 2.0, 2.0))])
    assert both.seconds(np.array([30, 9])).tolist() == pytest.approx([7.0, 2.0])
    assert both.seconds(np.array([0, 0])).tolist() == [0.0, 0.0]


def test_costs_that_fall_or_are_no_numbers_are_refused():
    for seconds in ((2.0, 1.0), (0.0, float("nan")), (0.0, float("inf"))):
        with pytest.raises(ValueError, match="falls with more rows or is not a finite number"):
            Costs.of([Cost((0.0, 1.0), seconds)])


def test_ten_thousand_ranks_are_solved():
    ranks = 10_000
    affine_costs = [Cost.affine(0.001 * (i % 7), 0.001 * (1 + i % 13)) for i in range(ranks)]
    bent = [Cost((0.0, 50.0, 100.0), (0.0, 0.05 * (1 + i % 5), 0.2 * (1 + i % 5))) for i in range(ranks)]
    for name, costs in (("affine", affine_costs), ("piecewise", bent)):
        solved = Costs.of(costs)
        began = time.perf_counter()
        shares = optimal_shares(solved, 1_000_000)
        print(f"10,000 ranks, {name}: {(time.perf_counter() - began) * 1000:.0f} ms")
        assert sum(shares) == 1_000_000
        # One row more on any rank would end later than the slowest does: nothing is left to move.
        now, more = solved.seconds(np.array(shares)).max(), solved.seconds(np.array(shares) + 1)
        assert (more >= now * (1 - 1e-9)).all()


@settings(max_examples=100, deadline=None)
@given(
    weights=st.lists(st.floats(0, 100), min_size=1, max_size=6).filter(lambda w: sum(w) > 0.01),
    batch=st.integers(1, 5000),
)
def test_proportional_shares_are_within_one_row_of_the_proportion(weights, batch):
    shares = proportional_shares(weights, batch)
    assert sum(shares) == batch
    for share, weight in zip(shares, weights, strict=True):
        assert abs(share - batch * weight / sum(weights)) < 1 + 1e-6
        assert weight > 0 or share == 0


def test_caps_push_rows_to_the_others():
    assert proportional_shares([3, 1], 100, [50, 100]) == (50, 50)
    assert even_shares(3, 10) == (4, 3, 3)
    assert even_shares(3, 10, [2, 9, 9]) == (2, 4, 4)
    with pytest.raises(ValueError, match="leave no room"):
        proportional_shares([1, 0], 100, [50, 100])
    with pytest.raises(ValueError, match="hold 60 rows together, the batch has 100; raise a cap"):
        even_shares(2, 100, [30, 30])


def test_caps_are_checked():
    assert checked_caps(None, 2, 10) == [10, 10]
    assert checked_caps([99, 0], 2, 10) == [10, 0]
    for caps in ([5, 5, 5], [11, -1]):
        with pytest.raises(ValueError, match="a number of at least 0 for each of the 2 ranks"):
            checked_caps(caps, 2, 10)


def test_one_share_stands_for_all_buckets_by_the_batches_they_have():
    assert mean_shares(((10, 30), (30, 10)), (1, 1)) == (20, 20)
    assert mean_shares(((10, 30), (30, 10)), (3, 1)) == (15, 25)
    assert sum(mean_shares(((1, 2, 4), (4, 2, 1), (0, 0, 7)), (5, 3, 1))) == 7
    assert mean_shares(((3, 4),), (2,)) == (3, 4)


def test_a_table_is_made_of_shares_once_or_per_bucket():
    assert as_table((3, 4), 2) == ((3, 4), (3, 4))
    assert as_table([[3, 4], [5, 2]], 2) == ((3, 4), (5, 2))
    assert as_table([[3, 4]], 1) == ((3, 4),)
    with pytest.raises(ValueError, match="shares of 1 buckets were given for 2"):
        as_table([[3, 4]], 2)
