"""From timings to shares. Pure: no clock, no MPI, no torch.

Rank 0 keeps a `Balancer`. It takes what the ranks timed (a *look*), fits a cost model per rank (engine.speed), solves
for the shares that let all ranks finish together (engine.shares), and acts when that is worth it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from engine.shares import Costs, Table, as_table, mean_shares, optimal_shares, proportional_shares
from engine.speed import ProfilePoint, SpeedModel

MIN_GAIN = 0.02
"""a predicted gain below this is not worth a change"""
NOISE_SIGMAS = 3.0
"""nor is one below this many standard errors of the timings"""
EPOCH_THRESHOLD = 0.25
"""at an epoch a gain above this is taken all the same: what scatters so for so long is a rank that stalls, not noise"""
DAMPED_GAIN = 0.1
"""a change back in the direction from which the last one came goes half the way, if it gains less than this"""


@dataclass(frozen=True)
class Decision:
    """Shares chosen by rank 0, with the reason that goes into metrics.jsonl."""

    table: Table
    """rows of a full batch per rank, for each bucket"""
    changed: bool
    reason: str
    predicted_gain: float
    """part of the slowest rank's time that the change saves, 0..1"""


@dataclass
class _Window:
    """What was timed since the last change: mean seconds of the slowest rank, per bucket."""

    steps_RB: np.ndarray
    seconds_RB: np.ndarray

    @classmethod
    def empty(cls, ranks: int, buckets: int) -> _Window:
        return cls(np.zeros((ranks, buckets)), np.zeros((ranks, buckets)))

    def add(self, looks_RB4: np.ndarray) -> None:
        self.steps_RB += looks_RB4[:, :, 0]
        self.seconds_RB += looks_RB4[:, :, 0] * looks_RB4[:, :, 2]

    def slowest(self) -> np.ndarray:
        """Mean seconds of the slowest rank per bucket [B], 0 where none was timed."""
        slowest_B: np.ndarray = (self.seconds_RB / np.maximum(self.steps_RB, 1)).max(axis=0)
        return slowest_B


@dataclass
class _Promise:
    """A change whose gain is still to be seen."""

    predicted: float
    before_B: np.ndarray
    steps: int
    """steps that were to be timed before it is judged"""
    step: int


@dataclass(frozen=True)
class Achieved:
    """What became of a change."""

    step: int
    """the step at which it was decided"""
    predicted_gain: float
    achieved_gain: float


@dataclass
class Balancer:
    """Chooses shares.

    Args:
        bounds: padded length of each bucket.
        batches: how many batches an epoch has of each bucket.
        table: the shares to begin with.
        caps: most rows per rank; None for no caps.
        profile: per rank, the start-up profile; empty for none.
    """

    bounds: Sequence[int]
    batches: Sequence[float]
    table: Table
    caps: list[int] | None = None
    profile: Sequence[Sequence[ProfilePoint]] = ()
    speeds: SpeedModel = field(init=False)

    def __post_init__(self) -> None:
        self.ranks, self.batch_size = len(self.table[0]), sum(self.table[0])
        self.speeds = SpeedModel(self.bounds, self.ranks, self.profile)
        self._last_move_R = np.zeros(self.ranks)
        self._window = _Window.empty(self.ranks, len(self.bounds))
        self._promise: _Promise | None = None

    def observe(self, looks_RB4: np.ndarray) -> None:
        """Take what the ranks timed since the last look.

        Args:
            looks_RB4: per rank and bucket: steps, mean rows, mean seconds, sum of squared deviations of the seconds.
        """
        if self.speeds.observe(looks_RB4):
            # What the ranks took until now is not what a change will be measured against.
            self._window = _Window.empty(self.ranks, len(self.bounds))
        self._window.add(looks_RB4)

    def lower_caps(self, caps: Sequence[float]) -> None:
        """Take over ranks' own limits of memory, 0 for none, as far as they leave room for the batch."""
        known = self.caps or [self.batch_size] * self.ranks
        lowered = [min(old, int(new)) if new else old for old, new in zip(known, caps, strict=True)]
        if lowered == known:
            return
        total = sum(lowered)
        if total < self.batch_size:
            # They cannot all be kept; in micro-batches every rank can do more than what did not fit at once.
            lowered = [min(old, -(-cap * self.batch_size // total)) for old, cap in zip(known, lowered, strict=True)]
        if sum(lowered) >= self.batch_size:
            self.caps = lowered

    def decide(self, step: int, window: int, most_threshold: float = 1.0) -> Decision:
        """Choose shares, or keep the present ones where a change is not worth it.

        Args:
            step: the number of the step after which this is decided.
            window: steps after which the change's gain is judged.
            most_threshold: a predicted gain above this is taken whatever the noise.
        """
        if not self.speeds.known().any():
            return Decision(self.table, False, "kept: too few steps were timed", 0.0)
        costs = [self.speeds.costs(bucket, self.batch_size) for bucket in range(len(self.bounds))]
        chosen: Table = tuple(optimal_shares(cost, self.batch_size, self.caps) for cost in costs)
        beyond = self.caps is not None and any(
            rows > cap for shares in self.table for rows, cap in zip(shares, self.caps, strict=True)
        )
        gain = self._gain(costs, self.table, chosen)
        threshold = min(max(MIN_GAIN, self._noise(chosen)), most_threshold)
        if chosen == self.table or (gain < threshold and not beyond):
            reason = f"kept: a change would gain {gain:.1%}, of which {threshold:.1%} may be noise in the timings"
            return Decision(self.table, False, reason, gain)
        damped = not beyond and gain < DAMPED_GAIN and self._reverses(chosen)
        if damped:
            chosen = self._half_way(chosen)
            gain = self._gain(costs, self.table, chosen)
        seconds_R = self._epoch_seconds(costs, self.table)
        slow = int(seconds_R.argmax())
        mean_now, mean_then = (mean_shares(table, self.batches)[slow] for table in (self.table, chosen))
        reason = f"rank {slow} was the slowest; its share goes from {mean_now} to {mean_then}"
        if beyond:
            reason = "a rank ran out of memory: its share is cut to what it can hold"
        return self._change(chosen, reason + (", half the way back" if damped else ""), gain, step, window)

    def achieved(self) -> Achieved | None:
        """What became of the last change, once, as soon as enough steps were timed under it."""
        promise = self._promise
        if promise is None or self._window.steps_RB.sum(axis=1).max() < promise.steps:
            return None
        self._promise = None
        after_B = self._window.slowest()
        seen_B = (after_B > 0) & (promise.before_B > 0)
        weight_B = np.array(self.batches) * seen_B
        before = float((weight_B * promise.before_B).sum())
        if not before:
            return None
        return Achieved(promise.step, promise.predicted, 1 - float((weight_B * after_B).sum()) / before)

    def state(self) -> dict[str, Any]:
        """Plain values to go on from; a change whose gain is still to be seen is forgotten."""
        return {"speeds": self.speeds.state(), "last_move": self._last_move_R.tolist()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from what `state` returned, for as many ranks."""
        self.speeds.load_state(state["speeds"])
        self._last_move_R = np.array(state["last_move"], dtype=float).reshape(self.ranks)

    def slowest_seconds(self, table: Sequence[Sequence[int]]) -> float:
        """Predicted compute seconds of an epoch's full batches under a table of shares: those of the slowest rank."""
        costs = [self.speeds.costs(bucket, self.batch_size) for bucket in range(len(self.bounds))]
        return self._seconds(costs, as_table(table, len(self.bounds)))

    def _change(self, chosen: Table, reason: str, gain: float, step: int, window: int) -> Decision:
        self._last_move_R = self._move(chosen)
        self._promise = _Promise(gain, self._window.slowest(), window, step)
        self._window = _Window.empty(self.ranks, len(self.bounds))
        self.table = chosen
        return Decision(chosen, True, reason, gain)

    def _noise(self, chosen: Table) -> float:
        """The predicted gain that noise alone may show.

        The slowest of many ranks stands out by chance the more, the more there are: the largest of R normal errors is
        about sqrt(2 ln R) of them. A rank without rows does not stand out; that it takes some off the others may be
        mistaken by as much of its error as it has of the batch. Else one that was timed only briefly, to see whether it
        can come back, never would.
        """
        errors_R = self.speeds.errors()
        now_R, then_R = (np.average(np.array(table), axis=0, weights=self.batches) for table in (self.table, chosen))
        part_R = np.where(now_R > 0, 1.0, then_R / self.batch_size)
        known_R = np.isfinite(errors_R)
        sigmas = max(NOISE_SIGMAS, math.sqrt(2 * math.log(self.ranks)) + 1.5)
        return sigmas * float((errors_R[known_R] * part_R[known_R]).max())

    def _epoch_seconds(self, costs: Sequence[Costs], table: Table) -> np.ndarray:
        """Predicted compute seconds per rank of an epoch's full batches [R]."""
        seconds_BR = self._seconds_BR(costs, table)
        seconds_R: np.ndarray = np.array(self.batches) @ seconds_BR
        return seconds_R

    def _seconds_BR(self, costs: Sequence[Costs], table: Table) -> np.ndarray:
        return np.stack([cost.seconds(np.array(shares)) for cost, shares in zip(costs, table, strict=True)])

    def _seconds(self, costs: Sequence[Costs], table: Table) -> float:
        return float(np.array(self.batches) @ self._seconds_BR(costs, table).max(axis=1))

    def _gain(self, costs: Sequence[Costs], now: Table, then: Table) -> float:
        before = self._seconds(costs, now)
        return max(0.0, 1 - self._seconds(costs, then) / before) if before else 0.0

    def _move(self, chosen: Table) -> np.ndarray:
        now, then = (np.average(np.array(table), axis=0, weights=self.batches) for table in (self.table, chosen))
        move_R: np.ndarray = then - now
        return move_R

    def _reverses(self, chosen: Table) -> bool:
        return bool(self._move(chosen) @ self._last_move_R < 0)

    def _half_way(self, chosen: Table) -> Table:
        """The table between the present one and another; its rows sum up as theirs do."""
        return tuple(
            proportional_shares([a + b for a, b in zip(now, then, strict=True)], self.batch_size, self.caps)
            for now, then in zip(self.table, chosen, strict=True)
        )
