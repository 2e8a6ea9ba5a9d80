"""Shares from costs: exact against brute force; decisions on timings."""

from __future__ import annotations

import itertools
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.balance import (
    EPOCH_THRESHOLD,
    Cost,
    Timing,
    decide,
    even_shares,
    fit_cost,
    optimal_shares,
    proportional_shares,
)

costs = st.builds(Cost, st.floats(0, 5), st.floats(0.01, 5))


def slowest(ranks: list[Cost], shares: tuple[int, ...]) -> float:
    return max(cost(rows) for cost, rows in zip(ranks, shares, strict=True))


@settings(max_examples=200, deadline=None)
@given(data=st.data(), ranks=st.lists(costs, min_size=1, max_size=4), batch=st.integers(1, 14))
def test_shares_are_the_exact_integer_optimum_under_caps(data, ranks, batch):
    caps = data.draw(st.lists(st.integers(0, 14), min_size=len(ranks), max_size=len(ranks)))
    if sum(min(cap, batch) for cap in caps) < batch:
        with pytest.raises(ValueError, match="raise a cap"):
            optimal_shares(ranks, batch, caps)
        return
    shares = optimal_shares(ranks, batch, caps)
    assert sum(shares) == batch
    assert all(0 <= share <= cap for share, cap in zip(shares, caps, strict=True))
    possible = [
        split for split in itertools.product(*(range(min(cap, batch) + 1) for cap in caps)) if sum(split) == batch
    ]
    assert slowest(ranks, shares) <= min(slowest(ranks, split) for split in possible) * (1 + 1e-12)


def test_the_least_rows_are_kept_where_there_are_enough():
    ranks = [Cost(0, 1), Cost(100, 1), Cost(0, 1)]
    assert optimal_shares(ranks, 10)[1] == 0
    assert optimal_shares(ranks, 10, least=1)[1] == 1
    assert sum(optimal_shares(ranks, 2, least=1)) == 2
    assert optimal_shares(ranks, 10, caps=[10, 0, 10], least=1)[1] == 0


def test_ten_thousand_ranks_are_solved():
    ranks = [Cost(0.001 * (i % 7), 0.001 * (1 + i % 13)) for i in range(10_000)]
    began = time.perf_counter()
    shares = optimal_shares(ranks, 1_000_000)
    print(f"10,000 ranks: {(time.perf_counter() - began) * 1000:.0f} ms")
    assert sum(shares) == 1_000_000


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
    with pytest.raises(ValueError, match="hold 60 rows together"):
        even_shares(2, 100, [30, 30])


def timings(rows: int, per_row: float, *, fixed: float = 0.0, spread: float = 0.0, steps: int = 20) -> list[Timing]:
    return [Timing(bound, rows, steps, bound * (fixed + per_row * rows), spread) for bound in (8, 32)]


def test_a_rank_that_is_three_times_as_slow_gets_a_third():
    decision = decide([timings(100, 1e-3), timings(100, 3e-3), timings(100, 1e-3)], (100, 100, 100))
    assert decision.changed
    assert decision.shares[1] < min(decision.shares[0], decision.shares[2]) / 2
    assert sum(decision.shares) == 300
    assert decision.predicted_gain == pytest.approx(1 - 3 / 7 / 1, abs=0.01)
    assert "rank 1" in decision.reason


def test_repeated_decisions_converge_on_equal_times_though_batches_have_a_fixed_cost():
    truth = [Cost(0.02, 1e-3), Cost(0.05, 4e-3), Cost(0.01, 2e-3)]
    shares = even_shares(3, 600)
    for _ in range(6):
        shares = decide(
            [timings(rows, cost.per_row, fixed=cost.fixed) for rows, cost in zip(shares, truth, strict=True)], shares
        ).shares
    assert slowest(truth, shares) <= 1.05 * slowest(truth, optimal_shares(truth, 600))


def test_an_even_cluster_is_left_alone_and_noise_is_not_acted_on():
    assert not decide([timings(100, 1e-3), timings(100, 1.01e-3)], (100, 100)).changed
    noisy = [timings(100, 1e-3, spread=0.5, steps=4), timings(100, 1.1e-3, spread=0.5, steps=4)]
    few = [timings(100, 1e-3, steps=1), timings(100, 1.25e-3, steps=1)]
    assert not decide(few, (100, 100)).changed
    assert not decide(noisy, (100, 100)).changed
    assert decide([timings(100, 1e-3), timings(100, 1.1e-3)], (100, 100)).changed


def test_a_rank_without_rows_is_tried_again():
    decision = decide([timings(90, 1e-3), [], timings(10, 1e-3)], (90, 0, 10))
    assert decision.changed
    assert min(decision.shares) >= 1


def test_without_timings_the_shares_stay():
    assert decide([[], []], (60, 40)).shares == (60, 40)
    assert fit_cost([Timing(8, 0, 5, 0.1, 0.0)]) is None


def test_short_batches_do_not_decide_a_ranks_speed():
    full = timings(100, 1e-3)
    cost, _ = fit_cost([*full, Timing(8, 3, 1, 5.0, 0.0)])
    assert cost.per_row == pytest.approx(1e-3)


def test_a_rank_that_stalls_in_some_steps_is_slow_though_its_steps_scatter_widely():
    throttled = [[Timing(8, 100, 30, 0.8, 0.01)], [Timing(8, 100, 30, 2.4, 2.9)]]
    assert not decide(throttled, (100, 100)).changed
    assert decide(throttled, (100, 100), most_threshold=EPOCH_THRESHOLD).shares[1] < 67
