"""Who chooses the shares in a simulation: the engine itself, or an oracle that knows every rank's true speed.

Shapes: A ranks that are alive, R ranks at the start, B buckets.
"""

from __future__ import annotations

import time
from collections import deque
from typing import Any, Protocol, cast

import numpy as np

from engine.plan import Plan
from engine.profile import SMALLEST, _buckets
from engine.rebalance import Rebalancer
from engine.shares import optimal_shares
from engine.simulation_clocks import RankClocks, SimulatedComm, simulated_session
from engine.simulation_ranks import Hardware, Throttle
from engine.speed import ProfilePoint
from engine.timing import RankClock


class Policy(Protocol):
    """Chooses the shares of a job, from its start to its end or to the death of a rank."""

    events: list[dict[str, Any]]
    """as in metrics.jsonl"""
    looks: int
    controller_seconds: float
    """what choosing took, on the machine that simulates"""

    def shares(self, number: int, bucket: int) -> np.ndarray:
        """Rows of a full batch per rank [A], for step `number`, counted from 1."""

    def after_step(self, step: int, total: int, bucket: int, rows_A: np.ndarray, seconds_A: np.ndarray) -> None:
        """A step is done: so many of the epoch, so many in all."""

    def end_epoch(self, total: int) -> None:
        """An epoch is done."""


class EnginePolicy:
    """The engine's own Rebalancer (mode "off", "epoch" or "auto") on the looks of simulated ranks.

    Args:
        plan: the global batches.
        hardware: what the ranks' start-up profile would find.
        ranks_A: those that are alive.
        total: steps done when the job starts.
        mode, every, caps: see Rebalancer.
    """

    def __init__(
        self,
        plan: Plan,
        hardware: Hardware,
        ranks_A: np.ndarray,
        total: int,
        mode: str,
        every: int,
        caps: tuple[int, ...] = (),
    ) -> None:
        self._plan, self._hardware, self._ranks_A = plan, hardware, ranks_A
        self._clocks = RankClocks(len(plan.layout), len(ranks_A))
        self._comm = SimulatedComm(self._clocks)
        self._rebalancer = Rebalancer(
            simulated_session(self._comm, len(ranks_A)),
            [shape.bound for shape in plan.layout],
            batches_of(plan),
            plan.batch_size,
            mode,
            every,
            caps=[caps[rank] for rank in ranks_A] if caps else (),
        )
        self.events: list[dict[str, Any]] = []
        self.looks, self.controller_seconds = 0, 0.0
        if self._rebalancer.active:
            self._comm.answers = hardware.profiles(plan, _buckets(plan), ranks_A, total)
            self._rebalancer.start([], keep=total > 0)
        self._table_BA = np.array(self._rebalancer.table)
        self._coming: deque[tuple[int, np.ndarray]] = deque()
        self._take_events()

    def shares(self, number: int, bucket: int) -> np.ndarray:
        """Rows of a full batch per rank [A] in a step: changes begin behind the batches that are read ahead."""
        while self._coming and self._coming[0][0] <= number:
            self._table_BA = self._coming.popleft()[1]
        shares_A: np.ndarray = self._table_BA[bucket]
        return shares_A

    def after_step(self, step: int, total: int, bucket: int, rows_A: np.ndarray, seconds_A: np.ndarray) -> None:
        """Let the clocks know, and do what is due."""
        if not self._rebalancer.active:
            return
        self._clocks.add(bucket, rows_A, seconds_A)
        left = self._plan.steps_per_epoch - step
        if not left:
            return
        clock = cast(RankClock, self._clocks)
        with self._timed():
            changed = self._rebalancer.after_step(step, total, left, clock, 0)
        if changed:
            self._coming.append((self._rebalancer.first_step, np.array(self._rebalancer.table)))
        self._take_events()

    def end_epoch(self, total: int) -> None:
        """Probe the ranks without rows, gather and decide."""
        if not self._rebalancer.active:
            return
        self._probe(total)
        before = self._rebalancer.first_step
        with self._timed():
            self._rebalancer.at_epoch_end(total, cast(RankClock, self._clocks), 0)
        if self._rebalancer.first_step != before:
            self._coming.append((self._rebalancer.first_step, np.array(self._rebalancer.table)))
        self._take_events()

    def _probe(self, total: int) -> None:
        """What engine.trainer does at an epoch's end with ranks that have no rows."""
        idle_A: np.ndarray = np.array(self._rebalancer.table).sum(axis=0) == 0
        if not idle_A.any():
            return
        bucket = _buckets(self._plan)[0]
        speed_A = self._hardware.speed(self._hardware.active(total + 1))[self._ranks_A]
        seconds_A = self._hardware.costs[bucket].of(self._ranks_A, speed_A).seconds(np.full(len(idle_A), SMALLEST))
        bound = self._plan.layout[bucket].bound
        self._comm.answers = [
            [ProfilePoint(bound, SMALLEST, float(seconds))] if idle else []
            for seconds, idle in zip(seconds_A, idle_A, strict=True)
        ]
        self._rebalancer.probe([])

    def _timed(self) -> _ControllerTime:
        return _ControllerTime(self, self._clocks)

    def _take_events(self) -> None:
        self.events += self._rebalancer.take_events()


class _ControllerTime:
    """Adds up what the controller takes: gathering the simulated looks is not part of it."""

    def __init__(self, policy: EnginePolicy, clocks: RankClocks) -> None:
        self._policy, self._clocks = policy, clocks

    def __enter__(self) -> None:
        self._began, self._known = time.perf_counter(), (self._clocks.count, self._clocks.seconds)

    def __exit__(self, *error: object) -> None:
        looks, gathering = self._clocks.count - self._known[0], self._clocks.seconds - self._known[1]
        self._policy.looks += looks
        self._policy.controller_seconds += time.perf_counter() - self._began - gathering


class OraclePolicy:
    """The best shares by the true speeds, at every step."""

    def __init__(self, plan: Plan, hardware: Hardware, ranks_A: np.ndarray, caps: tuple[int, ...] = ()) -> None:
        self._plan, self._hardware, self._ranks_A = plan, hardware, ranks_A
        self._caps = [caps[rank] or plan.batch_size for rank in ranks_A] if caps else None
        self._known: dict[tuple[int, tuple[Throttle, ...]], np.ndarray] = {}
        self.events: list[dict[str, Any]] = []
        self.looks, self.controller_seconds = 0, 0.0

    def shares(self, number: int, bucket: int) -> np.ndarray:
        """Rows of a full batch per rank [A], by the speeds of this very step."""
        key = bucket, self._hardware.active(number)
        if key not in self._known:
            speed_A = self._hardware.speed(key[1])[self._ranks_A]
            costs = self._hardware.costs[bucket].of(self._ranks_A, speed_A)
            self._known[key] = np.array(optimal_shares(costs, self._plan.batch_size, self._caps))
        return self._known[key]

    def after_step(self, step: int, total: int, bucket: int, rows_A: np.ndarray, seconds_A: np.ndarray) -> None:
        """Nothing to learn."""

    def end_epoch(self, total: int) -> None:
        """Nothing to learn."""


def batches_of(plan: Plan) -> list[int]:
    """Batches of each bucket in an epoch."""
    return [-(-shape.rows // plan.batch_size) for shape in plan.layout]
