"""From timings to shares. Pure: no clock, no MPI, no torch.

A rank's compute time for a batch of n rows padded to L tokens is modelled as L * (fixed + per_row * n). The shares
of a global batch are integers that minimise the slowest rank's predicted time, exactly.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

MIN_GAIN = 0.02
"""a predicted gain below this is not worth a change"""
NOISE_SIGMAS = 3.0
"""nor is one below this many standard errors of the timings"""
EPOCH_THRESHOLD = 0.25
"""at an epoch a gain above this is taken all the same: what scatters so for so long is a rank that stalls, not noise"""


PRIOR_SCATTER = 0.15
"""relative scatter of a step's time that is assumed before steps have shown it"""
PRIOR_STEPS = 4


@dataclass(frozen=True)
class Cost:
    """Predicted seconds per token of padded length: fixed + per_row * rows, and 0 for no rows."""

    fixed: float
    per_row: float

    def __call__(self, rows: int) -> float:
        return self.fixed + self.per_row * rows if rows else 0.0


@dataclass(frozen=True)
class Timing:
    """What one rank measured of one batch shape since the last decision: plain numbers, sent over MPI."""

    bound: int
    """padded length, tokens"""
    rows: int
    """rows of the rank's local batch"""
    steps: int
    seconds: float
    """mean compute seconds of a step"""
    spread: float
    """standard deviation of the steps' seconds"""


@dataclass(frozen=True)
class Decision:
    """Shares chosen by rank 0, with the reason that goes into metrics.jsonl."""

    shares: tuple[int, ...]
    changed: bool
    reason: str
    predicted_gain: float
    """part of the slowest rank's time that the change saves, 0..1"""


def proportional_shares(
    weights: Sequence[float], batch_size: int, caps: Sequence[int] | None = None
) -> tuple[int, ...]:
    """Integer shares of a batch in proportion to weights, by largest remainder; ties go to the lower rank.

    Args:
        weights: a number of at least 0 per rank, not all 0.
        batch_size: the sum of the shares.
        caps: most rows per rank; None for no caps.

    Raises:
        ValueError: the caps leave no room for the batch.
    """
    caps = _checked_caps(caps, len(weights), batch_size)
    shares = [0] * len(weights)
    # Ranks that reach their cap drop out, and the others share what is left in proportion.
    open_ranks = [rank for rank, weight in enumerate(weights) if weight > 0]
    left = batch_size
    while left:
        if not open_ranks:
            raise ValueError(
                f"caps {list(caps)} leave no room for {left} of the batch's {batch_size} rows on the "
                "ranks whose weight is above 0; raise a cap or lower the batch size"
            )
        total = math.fsum(weights[rank] for rank in open_ranks)
        ideal = {rank: left * weights[rank] / total for rank in open_ranks}
        full = [rank for rank in open_ranks if shares[rank] + ideal[rank] >= caps[rank]]
        if not full:
            floors = {rank: math.floor(ideal[rank]) for rank in open_ranks}
            rest = left - sum(floors.values())
            by_remainder = sorted(open_ranks, key=lambda rank: (floors[rank] - ideal[rank], rank))
            for place, rank in enumerate(by_remainder):
                shares[rank] += floors[rank] + (place < rest)
            break
        for rank in full:
            left -= caps[rank] - shares[rank]
            shares[rank] = caps[rank]
        open_ranks = [rank for rank in open_ranks if rank not in full]
    return tuple(shares)


def even_shares(ranks: int, batch_size: int, caps: Sequence[int] | None = None) -> tuple[int, ...]:
    """The even split, as far as the caps allow it."""
    return proportional_shares([1.0] * ranks, batch_size, caps)


def optimal_shares(
    costs: Sequence[Cost], batch_size: int, caps: Sequence[int] | None = None, least: int = 0
) -> tuple[int, ...]:
    """Integer shares that minimise the slowest rank's predicted time, exactly.

    Bisection finds a time at which the batch does not quite fit; the last rows then go, one by one, to the rank that
    would finish earliest with one row more. Both steps rest only on costs that do not fall with rows.

    Args:
        costs: a cost per rank, both numbers at least 0.
        batch_size: the sum of the shares.
        caps: most rows per rank; None for no caps.
        least: fewest rows per rank, as far as caps and batch size allow.

    Raises:
        ValueError: the caps leave no room for the batch.
    """
    ranks = len(costs)
    limits = np.array(_checked_caps(caps, ranks, batch_size), dtype=np.int64)
    floor = np.minimum(limits, least if least * ranks <= batch_size else 0)
    fixed = np.array([cost.fixed for cost in costs])
    per_row = np.maximum(np.array([cost.per_row for cost in costs]), 1e-300)

    def fitting(seconds: float) -> np.ndarray:
        rows = np.floor((seconds - fixed) / per_row)
        fit: np.ndarray = np.maximum(np.clip(rows, 0, limits), floor).astype(np.int64)
        return fit

    low, high = 0.0, float(np.max(fixed + per_row * batch_size))
    for _ in range(100):
        middle = (low + high) / 2
        if fitting(middle).sum() < batch_size:
            low = middle
        else:
            high = middle
    shares = fitting(low)
    missing = batch_size - int(shares.sum())
    queue = [(costs[rank](int(shares[rank]) + 1), rank) for rank in range(ranks) if shares[rank] < limits[rank]]
    heapq.heapify(queue)
    for _ in range(missing):
        _, rank = heapq.heappop(queue)
        shares[rank] += 1
        if shares[rank] < limits[rank]:
            heapq.heappush(queue, (costs[rank](int(shares[rank]) + 1), rank))
    return tuple(int(share) for share in shares)


def fit_cost(timings: Sequence[Timing]) -> tuple[Cost, float] | None:
    """A rank's cost in proportion to its rows, with its relative standard error; None without a timed row.

    Proportional, though a batch has a fixed cost too: applied again at every decision, it converges on equal times
    all the same (the error shrinks by the fixed part of the time at each), and it needs no history that a rank which
    has just slowed down would contradict.
    """
    used = [timing for timing in timings if timing.rows and timing.steps]
    if not used:
        return None
    # Full batches decide: a short one measures little but the fixed cost.
    most = max(timing.rows for timing in used)
    used = [timing for timing in used if timing.rows * 2 >= most]
    work = math.fsum(timing.steps * timing.rows * timing.bound for timing in used)
    seconds = math.fsum(timing.steps * timing.seconds for timing in used)
    return Cost(0.0, seconds / work), _relative_error(used)


def _relative_error(timings: Sequence[Timing]) -> float:
    """Relative standard error of a rank's speed.

    The scatter within each batch shape, pooled; a few steps say little of it, so an assumed scatter counts as much as
    PRIOR_STEPS steps would.
    """
    steps = sum(timing.steps for timing in timings)
    known = [timing for timing in timings if timing.steps > 1 and timing.seconds > 0]
    scatter = math.fsum((timing.steps - 1) * (timing.spread / timing.seconds) ** 2 for timing in known)
    freedom = sum(timing.steps - 1 for timing in known)
    variance = (scatter + PRIOR_STEPS * PRIOR_SCATTER**2) / (freedom + PRIOR_STEPS)
    return math.sqrt(variance / steps)


def decide(
    timings: Sequence[Sequence[Timing]],
    shares: Sequence[int],
    caps: Sequence[int] | None = None,
    most_threshold: float = 1.0,
) -> Decision:
    """Choose shares from the ranks' timings, or keep the present ones where a change is not worth it.

    Every rank keeps at least one row where the batch has enough: a rank without rows would never be timed again.

    Args:
        timings: per rank, what it measured since the last decision.
        shares: rows of a full batch per rank now.
        caps: most rows per rank; None for no caps.
        most_threshold: a predicted gain above this is taken whatever the noise.
    """
    fits = [fit_cost(rank) for rank in timings]
    known = [fit for fit in fits if fit is not None]
    if not known:
        return Decision(tuple(shares), False, "kept: too few steps were timed", 0.0)
    # A rank that has had no rows is taken to be as fast as the slowest that had some: enough to try it.
    slowest = max((fit[0] for fit in known), key=lambda cost: cost.per_row)
    costs = [fit[0] if fit is not None else slowest for fit in fits]
    batch_size = sum(shares)
    chosen = optimal_shares(costs, batch_size, caps, least=1)
    before = max(cost(rows) for cost, rows in zip(costs, shares, strict=True))
    after = max(cost(rows) for cost, rows in zip(costs, chosen, strict=True))
    gain = max(0.0, 1 - after / before) if before else 0.0
    threshold = min(max(MIN_GAIN, NOISE_SIGMAS * max(error for _, error in known)), most_threshold)
    if gain < threshold or chosen == tuple(shares):
        reason = f"kept: a change would gain {gain:.1%}, of which {threshold:.1%} may be noise in the timings"
        return Decision(tuple(shares), False, reason, gain)
    slow = max(range(len(costs)), key=lambda rank: costs[rank](shares[rank]))
    return Decision(
        chosen, True, f"rank {slow} was the slowest; its share goes from {shares[slow]} to {chosen[slow]}", gain
    )


def _checked_caps(caps: Sequence[int] | None, ranks: int, batch_size: int) -> list[int]:
    limits = [batch_size] * ranks if caps is None else [min(cap, batch_size) for cap in caps]
    if len(limits) != ranks or min(limits) < 0:
        raise ValueError(f"caps {limits} must hold a number of at least 0 for each of the {ranks} ranks")
    if sum(limits) < batch_size:
        raise ValueError(
            f"caps {limits} hold {sum(limits)} rows together, the batch has {batch_size}; "
            "raise a cap or lower the batch size"
        )
    return limits
