"""A training run without hardware: the engine's plan and balancer, driven by a model of ranks and network. Pure.

    plan.batch(epoch, step) -> rows of the global batch -> shares -> each rank's seconds by its true cost and noise
    step time = slowest rank + exchange;  the ranks' looks -> Rebalancer -> shares of later steps

Shapes: R ranks at the start, A of them alive, B buckets.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from engine.errors import UsageError
from engine.plan import Plan
from engine.shares import Costs
from engine.simulation_policies import EnginePolicy, OraclePolicy, Policy, batches_of
from engine.simulation_ranks import Failure, Hardware, Throttle

POLICIES = ("even", "epoch", "auto", "oracle")


@dataclass(frozen=True)
class Scenario:
    """What is simulated, whoever chooses the shares."""

    plan: Plan
    hardware: Hardware
    epochs: int = 1
    every: int = 50
    """steps of a window of auto"""
    caps: tuple[int, ...] = ()
    """most rows per rank, 0 for none"""
    checkpoint_every: int = 0
    """steps between checkpoints inside an epoch, 0 for none; after every epoch there is one"""
    checkpoint_minutes: float = 10.0
    """minutes between checkpoints inside an epoch, 0 for none"""
    restart_seconds: float = 60.0
    """from the death of a rank to the first step after it"""

    @property
    def steps(self) -> int:
        """Of all epochs together."""
        return self.epochs * self.plan.steps_per_epoch


@dataclass(frozen=True)
class Lost:
    """What the death of a rank cost."""

    rank: int
    step: int
    steps: int
    """done since the last checkpoint, to be done again"""
    seconds: float
    """that they had taken"""
    restart_seconds: float


@dataclass
class Run:
    """What became of a simulated run under one policy."""

    policy: str
    rows: int = 0
    """trained, counted once"""
    seconds: float = 0.0
    epoch_seconds: list[float] = field(default_factory=list)
    E: float = 0.0
    """rows per second over the sum of the ranks' own rates: batch_size x balance x exposure"""
    batch_size: float = 0.0
    balance: float = 0.0
    exposure: float = 0.0
    mean_over_max: float = 0.0
    """compute time of the ranks, median over the steps"""
    mean_over_max_p10: float = 0.0
    changes: int = 0
    """of the shares, after the first step"""
    lost: list[Lost] = field(default_factory=list)
    looks: int = 0
    controller_seconds: float = 0.0
    """on the machine that simulates; no part of the figures above"""
    step_seconds: list[float] = field(default_factory=list)
    """of every step that was done, those done twice included"""
    shares: list[tuple[int, np.ndarray]] = field(default_factory=list)
    """steps done before, as in step_seconds, and mean rows of a full batch per rank [R] since; NaN for a dead one"""
    events: list[dict[str, Any]] = field(default_factory=list)
    """as in metrics.jsonl"""


MakePolicy = Callable[[Scenario, np.ndarray, int], Policy]
"""from the scenario, the ranks that are alive and the steps done"""


def make_policy(name: str) -> MakePolicy:
    """One of POLICIES."""
    if name == "oracle":
        return lambda scenario, ranks_A, total: OraclePolicy(scenario.plan, scenario.hardware, ranks_A, scenario.caps)
    mode = "off" if name == "even" else name
    return lambda scenario, ranks_A, total: EnginePolicy(
        scenario.plan, scenario.hardware, ranks_A, total, mode, scenario.every, scenario.caps
    )


def simulate(scenario: Scenario, name: str, make: MakePolicy | None = None) -> Run:
    """Run all epochs under a policy; equal scenarios give equal runs, but for what the controller takes.

    Args:
        name: of the policy, one of POLICIES unless `make` is given.
        make: a policy of your own.

    Raises:
        UsageError: no rank is left.
    """
    return _Simulation(scenario, name, make or make_policy(name)).run()


class _Simulation:
    """One run; `_kept` holds what is known of each step that counts in the end."""

    def __init__(self, scenario: Scenario, name: str, make: MakePolicy) -> None:
        self._scenario, self._plan, self._hardware, self._make = scenario, scenario.plan, scenario.hardware, make
        self._run = Run(name)
        self._rates_BR = np.stack([costs.best_rates(self._plan.batch_size) for costs in self._hardware.costs])
        self._kept = np.zeros((scenario.steps, 5))
        """per step: rows, ideal seconds, seconds of the ranks weighted by their rates, slowest rank, mean / slowest"""
        self._ranks_A = np.arange(self._hardware.ranks)
        self._waiting: list[Failure] = sorted(self._hardware.failures, key=lambda failure: failure.step)
        self._total = 0
        self._checkpoint, self._saved_at = 0, 0.0
        self._start()

    def run(self) -> Run:
        """All steps, to the end."""
        length, marks = self._plan.steps_per_epoch, [0.0]
        while self._total < self._scenario.steps:
            if self._waiting and self._waiting[0].step == self._total + 1:
                self._fail(self._waiting.pop(0))
                continue
            self._step(*divmod(self._total, length))
            self._total += 1
            if self._total % length == 0:
                self._policy.end_epoch(self._total)
                marks[self._total // length :] = [self._run.seconds]
            self._save_if_due()
        self._close_policy()
        self._run.epoch_seconds = np.diff(marks).tolist()
        return self._figures()

    def _start(self) -> None:
        """A job begins, with the ranks that are alive."""
        self._policy = self._make(self._scenario, self._ranks_A, self._total)
        self._costs: dict[tuple[int, tuple[Throttle, ...]], tuple[Costs, np.ndarray]] = {}
        self._tables: dict[int, np.ndarray] = {}

    def _step(self, epoch: int, step: int) -> None:
        number, batch = self._total + 1, self._plan.batch(epoch, step)
        shares_A = self._policy.shares(number, batch.bucket)
        self._watch(number, batch.bucket, shares_A)
        rows_A = shares_A
        if batch.rows < self._plan.batch_size:
            rows_A = np.array([part.stop - part.start for part in self._plan.slices(batch.rows, shares_A.tolist())])
        costs, rates_A = self._true_costs(number, batch.bucket)
        noise = self._hardware.step_noise(number)
        seconds_A = costs.seconds(rows_A) * (noise if isinstance(noise, float) else noise[self._ranks_A])
        slowest = float(seconds_A.max())
        whole = rates_A.sum()
        weighted = float(rates_A @ seconds_A) / whole
        self._kept[self._total] = batch.rows, batch.rows / whole, weighted, slowest, seconds_A.mean() / slowest
        seconds = slowest + self._hardware.network.seconds(len(self._ranks_A))
        self._run.seconds += seconds
        self._run.step_seconds.append(seconds)
        self._policy.after_step(step + 1, number, batch.bucket, rows_A, seconds_A)

    def _true_costs(self, number: int, bucket: int) -> tuple[Costs, np.ndarray]:
        """Costs and own rates of the ranks that are alive, in a step."""
        key = bucket, self._hardware.active(number)
        if key not in self._costs:
            speed_A = self._hardware.speed(key[1])[self._ranks_A]
            rates_A = self._rates_BR[bucket, self._ranks_A] * speed_A
            self._costs[key] = self._hardware.costs[bucket].of(self._ranks_A, speed_A), rates_A
        return self._costs[key]

    def _watch(self, number: int, bucket: int, shares_A: np.ndarray) -> None:
        """Note new shares."""
        known = self._tables.get(bucket)
        if known is shares_A or (known is not None and np.array_equal(known, shares_A)):
            return
        first = not self._tables
        table_BA = [self._policy.shares(number, other) for other in range(len(self._plan.layout))]
        self._tables = dict(enumerate(table_BA))
        mean_R = np.full(self._hardware.ranks, np.nan)
        mean_R[self._ranks_A] = np.average(table_BA, axis=0, weights=batches_of(self._plan))
        self._run.shares.append((len(self._run.step_seconds), mean_R))
        self._run.changes += not first

    def _save_if_due(self) -> None:
        done, every, minutes = self._total, self._scenario.checkpoint_every, self._scenario.checkpoint_minutes
        if (
            done % self._plan.steps_per_epoch == 0
            or (every and done % every == 0)
            or (minutes and self._run.seconds - self._saved_at >= 60 * minutes)
        ):
            self._checkpoint, self._saved_at = done, self._run.seconds

    def _fail(self, failure: Failure) -> None:
        """A rank dies: the job ends, and one rank fewer goes on from the last checkpoint."""
        self._close_policy()
        self._ranks_A = self._ranks_A[self._ranks_A != failure.rank]
        if not len(self._ranks_A):
            raise UsageError(f"no rank is left after step {failure.step}: let fewer --fail")
        restart = self._scenario.restart_seconds
        seconds = self._run.seconds - self._saved_at
        self._run.lost.append(Lost(failure.rank, failure.step, self._total - self._checkpoint, seconds, restart))
        self._run.seconds += restart
        self._total, self._saved_at = self._checkpoint, self._run.seconds
        self._start()

    def _close_policy(self) -> None:
        self._run.looks += self._policy.looks
        self._run.controller_seconds += self._policy.controller_seconds
        self._run.events += self._policy.events

    def _figures(self) -> Run:
        run = self._run
        rows, ideal, weighted, slowest, _ = self._kept.sum(axis=0).tolist()
        run.rows, run.E = round(rows), ideal / run.seconds
        run.batch_size, run.balance, run.exposure = ideal / weighted, weighted / slowest, slowest / run.seconds
        even = self._kept[:, 4]
        run.mean_over_max, run.mean_over_max_p10 = float(np.median(even)), float(np.quantile(even, 0.1))
        return run
