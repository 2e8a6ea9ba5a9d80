"""The ranks and the network that a simulation drives training with: what a step really costs each of them. Pure.

A rank's true cost is a line or curve over its local rows per length bucket (engine.shares.Costs), divided by the speed
that throttling leaves it and times noise. Noise is drawn by (seed, step), so that all policies meet the same one.

Shapes: R ranks, K knots.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from engine.plan import Plan
from engine.profile import MOST_ROWS, SECONDS, SMALLEST
from engine.shares import Costs
from engine.speed import ProfilePoint

_STEP_NOISE, _PROFILE_NOISE = 1, 2  # purposes of random numbers


@dataclass(frozen=True)
class TrueCosts:
    """Seconds of every rank's part of a batch of one bucket: linear between knots."""

    rows_RK: np.ndarray
    seconds_RK: np.ndarray

    @classmethod
    def affine(cls, fixed_R: np.ndarray, per_row_R: np.ndarray, batch_size: int) -> TrueCosts:
        """fixed + per_row * rows."""
        rows_RK = np.tile([0.0, float(batch_size)], (len(fixed_R), 1))
        return cls(rows_RK, fixed_R[:, None] + per_row_R[:, None] * rows_RK)

    def of(self, ranks_A: np.ndarray, speed_A: np.ndarray) -> Costs:
        """Costs of some ranks at a part of their speeds."""
        return Costs(self.rows_RK[ranks_A], self.seconds_RK[ranks_A] / speed_A[:, None])

    def best_rates(self, most_rows: int) -> np.ndarray:
        """Every rank's own rows per second at its best local batch of at most so many rows [R]."""
        found_R = np.zeros(len(self.rows_RK))
        costs = Costs(self.rows_RK, self.seconds_RK)
        for column in (*self.rows_RK.T, np.full(len(found_R), most_rows)):
            rows_R = np.clip(column, 1, most_rows).astype(int)
            found_R = np.maximum(found_R, rows_R / costs.seconds(rows_R))
        return found_R


@dataclass(frozen=True)
class Throttle:
    """A rank runs at a part of its speed for some steps."""

    rank: int
    factor: float
    """of its speed"""
    first: int
    """number of the first such step, from 1, counted over all epochs"""
    last: int | None = None
    """number of the last one; None: to the end"""

    def holds(self, step: int) -> bool:
        """Whether it does at a step."""
        return self.first <= step and (self.last is None or step <= self.last)


@dataclass(frozen=True)
class Failure:
    """A rank dies in a step; the job goes on without it from the last checkpoint."""

    rank: int
    step: int
    """number of the step, from 1, counted over all epochs"""


@dataclass(frozen=True)
class Network:
    """Ring allreduce of the gradient, and what else a step costs outside the ranks' own compute."""

    bandwidth: float = 0.0
    """bytes per second of each rank; 0: the exchange costs no time"""
    latency: float = 0.0
    """seconds per message"""
    gradient_bytes: float = 0.0
    hidden: float = 0.0
    """part of the exchange that passes while the ranks compute, 0..1"""
    step_seconds: float = 0.0
    """seconds of a step that neither the ranks' compute nor the exchange account for"""

    def seconds(self, ranks: int) -> float:
        """Seconds that a step takes beyond the slowest rank's compute."""
        if ranks < 2:
            return self.step_seconds
        sent = self.gradient_bytes * 2 * (ranks - 1) / ranks / self.bandwidth if self.bandwidth else 0.0
        return self.step_seconds + (1 - self.hidden) * (sent + 2 * (ranks - 1) * self.latency)


@dataclass(frozen=True)
class Hardware:
    """All that a policy does not know."""

    costs: Sequence[TrueCosts]
    """of each length bucket"""
    network: Network = field(default_factory=Network)
    noise: float = 0.0
    """relative standard deviation of a rank's step"""
    throttles: Sequence[Throttle] = ()
    failures: Sequence[Failure] = ()
    seed: int = 0

    @property
    def ranks(self) -> int:
        """Ranks at the start."""
        return len(self.costs[0].rows_RK)

    def active(self, step: int) -> tuple[Throttle, ...]:
        """Throttles that hold at a step."""
        return tuple(throttle for throttle in self.throttles if throttle.holds(step))

    def speed(self, active: Sequence[Throttle]) -> np.ndarray:
        """The part of its speed that every rank has [R]."""
        speed_R = np.ones(self.ranks)
        for throttle in active:
            speed_R[throttle.rank] *= throttle.factor
        return speed_R

    def step_noise(self, step: int) -> np.ndarray | float:
        """Every rank's factor of noise in a step [R]; a function of seed and step alone."""
        return self._noise(_STEP_NOISE, step, self.ranks)

    def _noise(self, purpose: int, number: int, count: int) -> np.ndarray | float:
        """Log-normal numbers with mean 1."""
        if not self.noise:
            return 1.0
        random = np.random.Generator(np.random.Philox(key=[self.seed, purpose], counter=[0, 0, 0, number]))
        factor: np.ndarray = np.exp(self.noise * random.standard_normal(count) - self.noise**2 / 2)
        return factor

    def profiles(self, plan: Plan, buckets: Sequence[int], ranks_A: np.ndarray, step: int) -> list[list[ProfilePoint]]:
        """What the start-up profile (engine.profile) finds on some ranks, when a job starts after `step` steps."""
        speed_A = self.speed(self.active(step + 1))[ranks_A]
        points: list[list[ProfilePoint]] = [[] for _ in ranks_A]
        for bucket in buckets:
            costs, spent_A = self.costs[bucket].of(ranks_A, speed_A), np.zeros(len(ranks_A))
            shape, size, running_A = plan.layout[bucket], SMALLEST, np.ones(len(ranks_A), dtype=bool)
            most = min(MOST_ROWS, plan.batch_size, shape.rows)
            while running_A.any() and size <= max(most, SMALLEST):
                rows = min(size, most)
                # A mean of two.
                noise_A = 1 + (self._profile_noise(step, bucket, size) - 1)[ranks_A] / np.sqrt(2)
                seconds_A = costs.seconds(np.full(len(ranks_A), rows)) * noise_A
                for number in np.flatnonzero(running_A):
                    points[number].append(ProfilePoint(shape.bound, rows, float(seconds_A[number])))
                spent_A += 3 * seconds_A
                running_A &= spent_A + 6 * seconds_A <= SECONDS
                size *= 2
        return points

    def _profile_noise(self, step: int, bucket: int, size: int) -> np.ndarray:
        number = (step << 24) + (bucket << 16) + size
        return np.ones(self.ranks) * self._noise(_PROFILE_NOISE, number, self.ranks)
