"""Shares of a global batch: integers that minimise the slowest rank's predicted time, exactly. Pure.

Shapes: R ranks, K knots.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Table = tuple[tuple[int, ...], ...]
"""rows of a full batch per rank, for each length bucket"""

_BISECTIONS = 64


@dataclass(frozen=True)
class Cost:
    """Predicted seconds of a rank's part of a batch: linear between knots, and 0 for no rows.

    Attributes:
        rows: knots, rising, at least two. Before the first and beyond the last one the nearest line goes on.
        seconds: at each knot; not falling.
    """

    rows: tuple[float, ...]
    seconds: tuple[float, ...]

    @classmethod
    def affine(cls, fixed: float, per_row: float) -> Cost:
        """fixed + per_row * rows."""
        return cls((0.0, 1.0), (fixed, fixed + per_row))

    def __call__(self, rows: int) -> float:
        return Costs.of([self]).one(0, rows) if rows else 0.0


class Costs:
    """The costs of all ranks, to be asked for all of them at once.

    Args:
        rows_RK: knots of each rank, rising.
        seconds_RK: at each knot; not falling.

    Raises:
        ValueError: a cost falls with more rows: shares by it would have no meaning.
    """

    def __init__(self, rows_RK: np.ndarray, seconds_RK: np.ndarray) -> None:
        self._rows_RK, self._seconds_RK = rows_RK, seconds_RK
        self._slopes_RK = np.diff(seconds_RK, axis=1) / np.diff(rows_RK, axis=1)
        if (self._slopes_RK < 0).any() or not np.isfinite(seconds_RK).all():
            raise ValueError("a cost falls with more rows or is not a finite number: shares by it have no meaning")
        self._ranks_R = np.arange(len(rows_RK))

    @classmethod
    def of(cls, costs: Sequence[Cost]) -> Costs:
        """The same of separate costs; those with fewer knots go on along their last line."""
        knots = max(len(cost.rows) for cost in costs)
        rows = [_longer(cost.rows, cost.rows, knots) for cost in costs]
        return cls(np.array(rows), np.array([_longer(cost.rows, cost.seconds, knots) for cost in costs]))

    def __len__(self) -> int:
        return len(self._ranks_R)

    def seconds(self, rows_R: np.ndarray) -> np.ndarray:
        """Predicted seconds per rank for so many rows each."""
        line_R = self._line(self._rows_RK, rows_R)
        at = self._ranks_R, line_R
        seconds_R = self._seconds_RK[at] + (rows_R - self._rows_RK[at]) * self._slopes_RK[at]
        predicted_R: np.ndarray = np.where(rows_R > 0, np.maximum(seconds_R, 0.0), 0.0)
        return predicted_R

    def fitting(self, seconds: float) -> np.ndarray:
        """Rows that each rank can do in so many seconds: a real number, below 0 or huge where the cost says so."""
        at = self._ranks_R, self._line(self._seconds_RK, np.full(len(self), seconds))
        slope_R = np.maximum(self._slopes_RK[at], 1e-300)
        with np.errstate(over="ignore"):
            rows_R: np.ndarray = self._rows_RK[at] + (seconds - self._seconds_RK[at]) / slope_R
        return rows_R

    def one(self, rank: int, rows: int) -> float:
        """Predicted seconds of one rank for at least one row."""
        knots, seconds = self._rows_RK[rank], self._seconds_RK[rank]
        line = min(max(int(np.searchsorted(knots, rows, side="right")) - 1, 0), len(knots) - 2)
        return max(0.0, float(seconds[line] + (rows - knots[line]) * self._slopes_RK[rank, line]))

    def _line(self, knots_RK: np.ndarray, values_R: np.ndarray) -> np.ndarray:
        """The number of the line that holds each rank's value."""
        line_R: np.ndarray = np.clip((knots_RK <= values_R[:, None]).sum(axis=1) - 1, 0, knots_RK.shape[1] - 2)
        return line_R


def _longer(rows: Sequence[float], values: Sequence[float], knots: int) -> list[float]:
    step = (values[-1] - values[-2]) / (rows[-1] - rows[-2])
    return [*values, *(values[-1] + step * more for more in range(1, knots - len(values) + 1))]


def optimal_shares(
    costs: Costs | Sequence[Cost], batch_size: int, caps: Sequence[int] | None = None
) -> tuple[int, ...]:
    """Integer shares that minimise the slowest rank's predicted time, exactly.

    Bisection finds a time at which the batch does not quite fit; the last rows then go, one by one, to the rank that
    would finish earliest with one row more. Both steps rest only on costs that do not fall with rows. A rank whose
    first row alone would take longer than the others need for all of them gets none.

    Args:
        costs: of every rank.
        batch_size: the sum of the shares.
        caps: most rows per rank; None for no caps.

    Raises:
        ValueError: the caps leave no room for the batch.
    """
    if not isinstance(costs, Costs):
        costs = Costs.of(costs)
    limits_R = np.array(checked_caps(caps, len(costs), batch_size), dtype=np.int64)

    def fitting(seconds: float) -> np.ndarray:
        rows_R: np.ndarray = np.floor(np.clip(costs.fitting(seconds), 0, limits_R)).astype(np.int64)
        return rows_R

    low, high, shares_R = 0.0, float(costs.seconds(limits_R).max()), np.zeros_like(limits_R)
    missing = batch_size
    for _ in range(_BISECTIONS):
        if missing <= len(costs):
            break
        middle = (low + high) / 2
        fit_R = fitting(middle)
        left = batch_size - int(fit_R.sum())
        if left > 0:
            low, shares_R, missing = middle, fit_R, left
        else:
            high = middle
    next_R = costs.seconds(shares_R + 1)
    queue = [(float(next_R[rank]), int(rank)) for rank in np.flatnonzero(shares_R < limits_R)]
    heapq.heapify(queue)
    for _ in range(missing):
        _, rank = heapq.heappop(queue)
        shares_R[rank] += 1
        if shares_R[rank] < limits_R[rank]:
            heapq.heappush(queue, (costs.one(rank, int(shares_R[rank]) + 1), rank))
    return tuple(shares_R.tolist())


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
    caps = checked_caps(caps, len(weights), batch_size)
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


def mean_shares(table: Table, batches: Sequence[float]) -> tuple[int, ...]:
    """One share per rank that stands for all buckets: their mean, weighted by how many batches each bucket has."""
    rows_R = np.average(np.array(table, dtype=float), axis=0, weights=batches)
    return proportional_shares(rows_R.tolist(), sum(table[0]))


def as_table(shares: Sequence[int] | Sequence[Sequence[int]], buckets: int) -> Table:
    """A table of shares; the same ones in every bucket where they are given once.

    Raises:
        ValueError: it has rows for another number of buckets.
    """
    table = tuple(tuple(int(rows) for rows in row) for row in shares if isinstance(row, Sequence))
    if not table:
        table = (tuple(int(rows) for rows in shares if not isinstance(rows, Sequence)),) * buckets
    if len(table) != buckets:
        raise ValueError(f"shares of {len(table)} buckets were given for {buckets}")
    return table


def checked_caps(caps: Sequence[int] | None, ranks: int, batch_size: int) -> list[int]:
    """The caps as numbers up to the batch size.

    Raises:
        ValueError: another number of caps than ranks, one below 0, or no room for the batch.
    """
    limits = [batch_size] * ranks if caps is None else [min(cap, batch_size) for cap in caps]
    if len(limits) != ranks or min(limits) < 0:
        raise ValueError(f"caps {limits} must hold a number of at least 0 for each of the {ranks} ranks")
    if sum(limits) < batch_size:
        raise ValueError(
            f"caps {limits} hold {sum(limits)} rows together, the batch has {batch_size}; "
            "raise a cap or lower the batch size"
        )
    return limits
