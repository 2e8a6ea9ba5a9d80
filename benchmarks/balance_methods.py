"""The methods that benchmarks.balance compares, in the same processes: each has a model and an optimizer.

off, epoch, auto: the engine with that --balance.  oracle: fixed shares by speeds that were measured beforehand.
original: the rule of the project that this one grew from: after every epoch shares in proportion to the rows per second
of the forward pass alone, rounded. Its other faults (lost rows, means without weights) are left out.
ddp: PyTorch's DistributedDataParallel on gloo with an even split, fed by the same reader.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

import engine
from benchmarks.balance_work import CLIP_NORM, make
from engine.input import Prefetcher, ReviewSource

Step = tuple[float, int, int, float, float]
"""clock at the step's end; padded length; local rows; seconds of compute and of waiting for input"""


class Recorder:
    """What was measured of each step of a turn."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.controller = 0.0
        """seconds spent in balancing, inside epochs"""
        self.after_step: Callable[[int], None] = lambda count: None

    def take(self, bound: int, rows: int, compute: float, input: float, wait: float = 0.0) -> None:
        """Record a step that ends now."""
        self.steps.append((time.perf_counter(), bound, rows, compute, input))
        self.after_step(len(self.steps))

    def begin(self) -> None:
        """Forget what was recorded."""
        self.steps, self.controller = [], 0.0


class TimedTrainer(engine.Trainer):
    """The engine's trainer, with the time that it takes to balance."""

    recorder: Recorder

    def _balance_step(self, batches: Prefetcher) -> None:
        began = time.perf_counter()
        super()._balance_step(batches)
        self.recorder.controller += time.perf_counter() - began


class EngineMethod:
    """The engine's trainer; a turn is the last steps of an epoch, so that its length can be chosen."""

    def __init__(
        self, data: engine.Dataset, plan: engine.Plan, session: engine.Session, recorder: Recorder, **options: Any
    ) -> None:
        self._data, self._plan, self._session, self._recorder = data, plan, session, recorder
        self.model, self._loss, self._optimizer = make(data.ids)
        self.decisions: list[dict[str, Any]] = []
        self.trainer = self._trainer(**options)

    def run(self, steps: int) -> None:
        """Train so many steps, up to the end of an epoch."""
        progress = self.trainer.progress
        progress.step = self._plan.steps_per_epoch - steps
        self.trainer.fit(self._data, epochs=progress.epoch + 1)

    def _trainer(self, **options: Any) -> engine.Trainer:
        trainer = TimedTrainer(
            self.model,
            self._loss,
            self._optimizer,
            self._plan,
            self._session,
            clip_norm=CLIP_NORM,
            hooks=engine.Hooks(record=self._record, timed=self._recorder.take),
            **options,
        )
        trainer.recorder = self._recorder
        return trainer

    def _record(self, event: dict[str, Any]) -> None:
        if event["event"] == "shares":
            self.decisions.append(event)


class OriginalMethod(EngineMethod):
    """The original's rule on top of the engine's exact loop."""

    def __init__(self, data: engine.Dataset, plan: engine.Plan, session: engine.Session, recorder: Recorder) -> None:
        super().__init__(data, plan, session, recorder, balance="off")
        self._forward = self._began = 0.0
        self._rows = 0
        self.model.register_forward_pre_hook(self._forward_begins)
        self.model.register_forward_hook(self._forward_ends)

    def run(self, steps: int) -> None:
        """Train, then share the next epoch out by the forward pass's rates."""
        self._forward, self._rows = 0.0, 0
        super().run(steps)
        rates = self._session.comm.allgather(self._rows / self._forward if self._rows else 0.0)
        shares = rounded_shares(rates, self._plan.batch_size)
        progress = self.trainer.progress
        self.trainer = self._trainer(shares=shares)
        self.trainer.progress = progress
        self.decisions.append({"event": "shares", "step": progress.total_steps, "shares": list(shares)})

    def _forward_begins(self, model: torch.nn.Module, inputs: Any) -> None:
        self._began = time.perf_counter()

    def _forward_ends(self, model: torch.nn.Module, inputs: Any, output: torch.Tensor) -> None:
        self._forward += time.perf_counter() - self._began
        self._rows += len(output)


def rounded_shares(rates: Sequence[float], batch_size: int) -> tuple[int, ...]:
    """Shares in proportion to rates, rounded each; the last rank takes what rounding leaves or lacks."""
    shares = [round(batch_size * rate / sum(rates)) for rate in rates[:-1]]
    return (*shares, batch_size - sum(shares))


class DdpMethod:
    """PyTorch DDP as its users run it, on batches of the engine's reader."""

    def __init__(
        self, data: engine.Dataset, plan: engine.Plan, session: engine.Session, recorder: Recorder, store: Path
    ) -> None:
        self._plan, self._session, self._recorder = plan, session, recorder
        self._source = ReviewSource(data, plan)
        self._shares = rounded_shares([1.0] * session.size, plan.batch_size)
        model, self._loss, self._optimizer = make(data.ids)
        torch.distributed.init_process_group(
            "gloo", init_method=f"file://{store}", rank=session.rank, world_size=session.size
        )
        self._model = torch.nn.parallel.DistributedDataParallel(model)
        self._epoch = 0
        self.decisions: list[dict[str, Any]] = []

    def run(self, steps: int) -> None:
        """Train so many steps."""
        start = self._plan.steps_per_epoch - steps
        batches = Prefetcher(
            self._plan, self._source, self._session.rank, [self._shares], self._epoch, start, self._epoch + 1
        )
        self._epoch += 1
        self._model.train()
        try:
            for _ in range(steps):
                began = time.perf_counter()
                batch = batches.next()
                waited = time.perf_counter() - began
                self._optimizer.zero_grad()
                # DDP divides by the ranks; theirs are equal shares, so this is the whole batch's mean.
                self._loss(self._model(*batch.inputs), batch.target).mean().backward()
                torch.nn.utils.clip_grad_norm_(self._model.parameters(), CLIP_NORM)
                self._optimizer.step()
                # Its exchange runs inside backward: compute cannot be told from waiting.
                self._recorder.take(batch.bound, batch.rows, 0.0, waited)
        finally:
            batches.close()

    def close(self) -> None:
        """Leave the process group."""
        with suppress(RuntimeError):
            torch.distributed.destroy_process_group()
