"""The training loop: batch, forward, backward, exchange, step; shares and checkpoints at their time."""

from __future__ import annotations

import gc
import math
import signal
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from engine.averaging import averaged_model
from engine.checkpoint import Checkpoint, load_optimizer_state, optimizer_state
from engine.compute import LocalWork
from engine.config import require_choice
from engine.errors import Preempted, TrainingError, UsageError
from engine.exchange import Control, GradientExchange
from engine.input import READ_AHEAD, LocalBatch, Prefetcher, Source, as_source
from engine.journal import Journal
from engine.nonfinite import NonFinite
from engine.plan import Plan
from engine.precision import Precision
from engine.profile import SMALLEST, best_micro_steps, profile
from engine.progress import Hooks, Progress, epoch_event
from engine.rebalance import Rebalancer
from engine.replicas import make_equal, send_weights
from engine.schedule import LearningRate
from engine.session import Session
from engine.shares import Table, as_table
from engine.timing import ComputeTimer, RankClock
from engine.watch import Phase, Stall

_COLLECT_EVERY = 100
"""steps between runs of Python's garbage collector, the same on every rank: at random it makes a rank look slow"""


class Trainer:
    """Trains a model on uneven shares of each global batch, with the gradient of the whole batch.

    Args:
        model: any module; its parameters are made equal to rank 0's.
        loss: called as loss(output, target); returns one loss per row. A method row_weights(target), if it has
            one, gives a weight per row.
        optimizer: any torch optimiser of the model's parameters. Do not call its zero_grad: the gradients live in
            buffers of the engine's.
        plan: the global batches.
        session: the ranks.
        balance: "off", "epoch" (shares follow the timings of each epoch) or "auto" (also inside an epoch; the default).
        rebalance_every: steps of a window of "auto": a change's gain is judged after one.
        shares: fixed proportions per rank; implies balance="off".
        rank_caps: most rows of a batch per rank, 0 for no cap.
        micro_batch: most rows computed at once; 0 for the fastest size by the start-up profile, where there is
            balancing; -1 for no limit.
        exchange: "auto", "dense" or "rows" (see GradientExchange).
        compression: "none", or "fp16": gradients travel as 16-bit numbers, and are no longer exact.
        clip_norm: largest norm of the gradient; 0 for no clipping.
        warmup_steps: steps over which the learning rate rises from 0.
        schedule: the learning rate after that: "constant", "inverse", "linear" or "cosine" (see LearningRate).
        average_decay: what is left of a running average of the weights at each step; 0 for no average.
        precision: "float64", "float32", "bfloat16" or "float16".
        log_every: steps between "step" events.
        on_nonfinite: "stop", or "skip" steps whose loss or gradient is not a finite number.
        journal: shares of an earlier run, to be used step for step; implies balance="off".
        hooks: what is called on the way.

    Raises:
        UsageError: an option has no such value, or ranks disagree.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Any,
        optimizer: torch.optim.Optimizer,
        plan: Plan,
        session: Session,
        *,
        balance: str | None = None,
        rebalance_every: int = 50,
        shares: Sequence[float] = (),
        rank_caps: Sequence[int] = (),
        micro_batch: int = 0,
        exchange: str = "auto",
        compression: str = "none",
        clip_norm: float = 0.0,
        warmup_steps: int = 0,
        schedule: str = "constant",
        average_decay: float = 0.0,
        precision: str = "float32",
        log_every: int = 50,
        on_nonfinite: str = "stop",
        journal: Journal | None = None,
        hooks: Hooks | None = None,
    ) -> None:
        self.model, self.loss, self.optimizer, self.plan, self.session = model, loss, optimizer, plan, session
        balance = balance or ("off" if shares or journal else "auto")
        chosen = {"balance": balance, "exchange": exchange, "compression": compression, "schedule": schedule}
        for name, value in (chosen | {"precision": precision, "on_nonfinite": on_nonfinite}).items():
            require_choice(name, value)
        if not 0 <= average_decay < 1:
            raise UsageError(f"average_decay={average_decay}: give a number of at least 0 and below 1")
        self.progress = Progress()
        self.hooks = hooks or Hooks()
        self._clip_norm, self._log_every, self._journal = clip_norm, log_every, journal
        self._rate = LearningRate(optimizer, schedule, warmup_steps, plan.steps_per_epoch)
        self._total_steps = 0
        # First of all: an option that only one rank refuses must not leave the others waiting.
        session.agree(
            {
                "plan": (plan.layout, plan.batch_size, plan.seed, plan.shuffle, plan.windows),
                "parameters": [(n, tuple(p.shape), str(p.dtype)) for n, p in model.named_parameters()],
                "kind of device": session.device.type,
                "optimizer": type(optimizer).__name__,
                "--precision": precision,
                "--balance": balance,
                "--rebalance-every": rebalance_every,
                "--shares": tuple(shares),
                "--rank-caps": tuple(rank_caps),
                "--micro-batch": micro_batch,
                "--exchange": exchange,
                "--compression": compression,
                "--clip-norm": clip_norm,
                "--warmup-steps": warmup_steps,
                "--schedule": schedule,
                "--average-decay": average_decay,
                "--on-nonfinite": on_nonfinite,
                "--shares-from": journal,
            }
        )
        self.rebalancer = Rebalancer(
            session, *_buckets(plan), plan.batch_size, balance, rebalance_every, shares, rank_caps
        )
        self.precision = Precision(precision, session.device)
        send_weights(session, model, optimizer)
        self._average = averaged_model(model, average_decay) if average_decay else None
        self._exchange = GradientExchange(model, session, exchange, compression)
        self._timer = ComputeTimer(session.device)
        self._work = LocalWork(
            model, loss, self.precision, self._exchange, self._timer, (plan.seed, session.rank), micro_batch
        )
        self._nonfinite = NonFinite(session, plan, self._work, self._exchange, on_nonfinite)
        self._clock = RankClock([shape.bound for shape in plan.layout])
        self._schedule: Sequence[Table] = [self.rebalancer.table]
        self._started = self._shares_resumed = self._profiled = False
        self._told_micro_steps: list[int] | None = None
        if journal is not None:
            self._work.micro_steps = journal.micro_steps[session.rank]

    @property
    def trained(self) -> nn.Module:
        """The model to measure and to use: with the average of the weights, where there is one."""
        return self._average.module if self._average is not None else self.model

    @property
    def shares(self) -> tuple[int, ...]:
        """Rows of a full batch per rank, for the batches that are read next; the mean where buckets differ."""
        return self.rebalancer.shares

    def fit(self, data: Any, epochs: int) -> None:
        """Train until `epochs` epochs are done, from wherever `progress` stands. Collective.

        Args:
            data: a dataset of reviews, a map-style torch dataset of (input..., target) items, or a Source of your own.
            epochs: passes over the plan's rows, those done already included.

        Raises:
            TrainingError: on every rank: a loss or gradient is not a finite number.
            Preempted: on every rank, after a checkpoint: a signal asked one of them to stop.
        """
        self.session.agree({"epochs": epochs, "progress": self.progress.total_steps})
        self._total_steps = epochs * self.plan.steps_per_epoch
        source = as_source(data, self.plan, self.session.device)
        self._start(source)
        batches = Prefetcher(
            self.plan,
            source,
            self.session.rank,
            self._schedule,
            self.progress.epoch,
            self.progress.step,
            epochs,
            self.session.device,
        )
        self.model.train()
        heartbeat = self.session.heartbeat
        if heartbeat is not None:
            heartbeat.stalled = Stall(self.hooks.watch, self.session.step_timeout, self.session.root).after
        collecting = gc.isenabled()
        gc.disable()
        try:
            while self.progress.epoch < epochs and not self._enough():
                self.hooks.display.start_epoch(
                    self.progress.epoch + 1, epochs, self.plan.steps_per_epoch, self.progress.step
                )
                while self.progress.step < self.plan.steps_per_epoch:
                    if self.hooks.trace is not None:
                        self.hooks.trace.before_step(self, batches)
                    self._after_step(self._step(batches), batches)
                self._end_epoch(batches, source)
        finally:
            if collecting:
                gc.enable()
            if heartbeat is not None:
                heartbeat.stalled = None
            self.hooks.display.close()
            self._exchange.close()
            batches.close()

    def _start(self, source: Source) -> None:
        """Time batches of several sizes, once, where shares may change: prior knowledge for the first decisions."""
        if self._started:
            return
        self._started = True
        done = self.progress.total_steps
        if self._journal is not None:
            self._schedule = self._journal.schedule(done)
            self.rebalancer.follow(self._schedule[0])
        reason = f"from {self._journal.path}" if self._journal else "resumed" if done else "start"
        self.rebalancer.tell(self._schedule[: READ_AHEAD + 1], done, reason)
        if self.rebalancer.active and not self._profiled:
            points = profile(self._work, self.model, self.plan, source, self.session.device)
            self._exchange.clear()
            self._exchange.close()
            if self._work.micro_batch == 0:
                self._work.micro_steps = best_micro_steps(points)
            self.rebalancer.start(points, self._shares_resumed, done)
            if not self._shares_resumed:
                self._schedule = [self.rebalancer.table]
        self._record_events()
        self._record_work()

    def _record_work(self) -> None:
        """Tell how ranks cut their rows and gradients travel, where that has changed. Collective."""
        micro_steps = self.session.comm.gather(self._work.micro_steps, root=0)
        if micro_steps is not None and micro_steps != self._told_micro_steps:
            self._told_micro_steps = micro_steps
            step, method = self.progress.total_steps, self._exchange.method
            self.hooks.record({"event": "work", "step": step, "micro_steps": micro_steps, "exchange": method})

    def _step(self, batches: Prefetcher) -> Control:
        """One step; what all ranks have said in it."""
        self.hooks.watch.enter(Phase.INPUT)
        began = time.perf_counter()
        batch = batches.next()
        batch.hand_over()
        in_hand = time.perf_counter()
        self.hooks.watch.enter(Phase.COMPUTE)
        self._timer.start()
        self._exchange.clear()
        loss, weight = self._work.run(batch, self.progress.total_steps)
        self._timer.stop()
        self.hooks.watch.enter(Phase.WAIT)
        due = self.session.root and self.hooks.checkpoint_due(self.progress.total_steps + 1)
        asked = self.hooks.stop_asked()
        own = Control(
            rows=batch.rows,
            checkpoint=float(due),
            terminate=float(asked == signal.SIGTERM),
            interrupt=float(asked == signal.SIGUSR1),
        )
        total = self._exchange.sum_over_ranks(loss, weight, own)
        compute = self._timer.seconds()
        waited = max(0.0, time.perf_counter() - in_hand - compute)
        assert int(total.rows) == batch.whole.rows, "the ranks' slices do not make the global batch"
        applied = self._apply(total, batch, batches.table)
        if (self.progress.total_steps + 1) % _COLLECT_EVERY == 0:
            gc.collect()
        cost = batch.bound, batch.rows, compute, in_hand - began, waited
        self._clock.add(*cost)
        self.hooks.watch.timed(*cost)
        self.hooks.timed(*cost)
        self._count(total, time.perf_counter() - began, applied)
        return total

    def _apply(self, total: Control, batch: LocalBatch, table: Table) -> bool:
        """Make the summed gradient that of the weighted mean, clip it, and step; whether the step was made."""
        if total.outside:
            raise TrainingError(
                f"step {self.progress.total_steps + 1}: an embedding's weight got a gradient in rows that the module "
                "did not look up (it is used elsewhere too), so they were not exchanged; set --exchange dense "
                '(of a Trainer: exchange="dense")'
            )
        if total.weight > 0:
            factor = batch.whole.rows / total.weight / self.precision.scale
            if factor != 1.0:
                self._exchange.scale(factor)
        norm = self._exchange.norm()
        finite = math.isfinite(norm) and not total.nonfinite
        if self.precision.overflowed(finite):
            self.progress.skipped += 1
            return False
        if not finite:
            event = self._nonfinite.meet(total, batch, table, self.progress.epoch, self.progress.total_steps)
            self.progress.nonfinite += 1
            if self.session.root:
                self.hooks.record({**event, "skipped": self.progress.nonfinite})
            return False
        self._nonfinite.none()
        if self._clip_norm and norm > self._clip_norm:
            self._exchange.scale(self._clip_norm / norm)
        self._rate.set(self.progress.total_steps, self._total_steps)
        self.optimizer.step()
        if self._average is not None:
            self._average.update_parameters(self.model)
        return True

    def _after_step(self, total: Control, batches: Prefetcher) -> None:
        """Balance, save where that is due, and stop where a rank was asked to."""
        inside = self.progress.step < self.plan.steps_per_epoch
        if inside:
            self._balance_step(batches)
        self._schedule = batches.schedule()[: READ_AHEAD + 1]
        stop = signal.SIGTERM if total.terminate else signal.SIGUSR1 if total.interrupt else None
        saved = self.hooks.save(None) if stop or (total.checkpoint and inside) else None
        if stop:
            what = "could not be saved" if saved is False else "is saved"
            raise Preempted(
                f"stopped by {stop.name} after step {self.progress.total_steps}, which {what}; the same command goes "
                "on from the last checkpoint",
                stop,
            )

    def _count(self, total: Control, seconds: float, applied: bool) -> None:
        progress = self.progress
        progress.step += 1
        progress.total_steps += 1
        progress.rows += int(total.rows)
        progress.seconds += seconds
        if applied:
            progress.loss += total.loss
            progress.weight += total.weight
        mean = total.loss / total.weight if total.weight else 0.0
        self.hooks.display.step(mean, int(total.rows))
        if self.session.root and progress.total_steps % self._log_every == 0:
            self.hooks.record(
                {
                    "event": "step",
                    "step": progress.total_steps,
                    "epoch": progress.epoch + 1,
                    "loss": mean,
                    "learning_rate": float(self.optimizer.param_groups[0]["lr"]),
                }
            )

    def _balance_step(self, batches: Prefetcher) -> None:
        """What balancing does after a step inside an epoch; it waits for nobody."""
        step, total = self.progress.step, self.progress.total_steps
        if self._journal is not None:
            self._follow_journal(self._journal, total)
            return
        left = self.plan.steps_per_epoch - step
        if self.rebalancer.after_step(step, total, left, self._clock, self._work.most_rows):
            assert self.rebalancer.first_step == total + batches.ahead + 1, "new shares begin elsewhere on this rank"
            batches.set_shares(self.rebalancer.table)
        self._record_events()

    def _follow_journal(self, journal: Journal, total: int) -> None:
        """The batches that are read have the journal's shares already; tell of a change when it comes."""
        table = journal.table(total + 1)
        if table != self.rebalancer.table:
            self.rebalancer.follow(table)
            self.rebalancer.tell([table], total, f"from {journal.path}")
            self._record_events()

    def _end_epoch(self, batches: Prefetcher, source: Source) -> None:
        """Validate, choose the next epoch's shares, record the epoch, save."""
        self.hooks.display.end_epoch()
        self.hooks.watch.enter(Phase.VALIDATE)
        resynced = make_equal(self.session, self.model, self.optimizer, self._average)
        if resynced and self.session.root:
            self.hooks.record({"event": "resync", "step": self.progress.total_steps, "ranks": resynced})
        shares = self.shares
        figures = self.hooks.validate(shares)
        clocks = self.session.comm.gather(self._clock.totals(), root=0)
        self._probe(source)
        self.rebalancer.at_epoch_end(self.progress.total_steps, self._clock, self._work.most_rows)
        if clocks is not None:
            self.hooks.record(epoch_event(self.progress, figures, shares, clocks))
        self._record_events()
        self._record_work()
        if self._journal is not None:
            self._follow_journal(self._journal, self.progress.total_steps)
        else:
            batches.set_shares(self.rebalancer.table)
        self.progress.start_epoch()
        self._clock.start_epoch()
        self._schedule = batches.schedule()[: READ_AHEAD + 1]
        self.hooks.watch.enter(Phase.SAVE)
        self.hooks.save(figures or {})

    def _enough(self) -> bool:
        """Whether rank 0 finds that training has lasted long enough. Collective."""
        return bool(self.session.comm.bcast(self.hooks.enough() if self.session.root else None, root=0))

    def _probe(self, source: Source) -> None:
        """Let ranks that have no rows in any bucket time a few, so that they can come back."""
        table = self.rebalancer.table
        idle = [rank for rank in range(self.session.size) if not any(shares[rank] for shares in table)]
        if not self.rebalancer.active or not idle:
            return
        points = []
        if self.session.rank in idle:
            points = profile(
                self._work, self.model, self.plan, source, self.session.device, sizes=[SMALLEST, 4 * SMALLEST]
            )
            self._exchange.clear()
            self._exchange.close()
        self.rebalancer.probe(points)

    def _record_events(self) -> None:
        """Record what the balancer has to tell (rank 0)."""
        for event in self.rebalancer.take_events():
            self.hooks.record(event)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything that training goes on from: tensors and plain values, whole on rank 0. Collective."""
        tensors = {f"model/{name}": tensor for name, tensor in self.model.state_dict().items()}
        optimizer_tensors, optimizer_values = optimizer_state(self.optimizer)
        tensors |= {f"optimizer/{name}": tensor for name, tensor in optimizer_tensors.items()}
        if self._average is not None:
            tensors |= {f"average/{name}": tensor for name, tensor in self._average.module.state_dict().items()}
        return tensors, {
            "progress": asdict(self.progress),
            "schedule": [[list(shares) for shares in table] for table in self._schedule],
            "clocks": self.session.comm.allgather(self._clock.totals()),
            "ranks": self.session.comm.allgather(self.session.place),
            "micro_steps": self.session.comm.allgather(self._work.micro_steps),
            "balancer": self.rebalancer.state(),
            "exchange": self._exchange.method,
            "optimizer": optimizer_values,
            "precision": self.precision.state(),
            "averaged_steps": int(self._average.n_averaged) if self._average is not None else 0,
        }

    def load_state(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Go on from what `state` returned.

        The shares are taken over where they fit: the same number of ranks, balancing on, within the caps; micro-batches
        and cost models where the ranks run on the same hosts and devices, in place of a new profile. Collective.
        """
        saved = Checkpoint(tensors, values)
        self.model.load_state_dict(saved.part("model"))
        load_optimizer_state(self.optimizer, saved.part("optimizer"), values["optimizer"])
        if self._average is not None:  # a checkpoint without one lets it begin here
            self._average.module.load_state_dict(saved.part("average") or saved.part("model"))
            self._average.n_averaged.fill_(values.get("averaged_steps", 0))
        self.precision.load_state(values["precision"])
        self.progress = Progress(**values["progress"])
        self._rate.reset()  # the rates of this run, not those that the checkpoint was trained with
        schedule = [as_table(shares, len(self.plan.layout)) for shares in values["schedule"]]
        self._shares_resumed = self.rebalancer.resume(schedule)
        if self._shares_resumed:
            self._schedule = schedule
        if len(values["clocks"]) == self.session.size:
            self._clock.start_epoch(tuple(values["clocks"][self.session.rank]))
        at_home = self.session.comm.allgather(self.session.place) == values["ranks"]
        if self._shares_resumed and at_home and self.rebalancer.active and values["balancer"]:
            self.rebalancer.load_state(values["balancer"])
            self._profiled = True
            if self._work.micro_batch == 0:
                self._work.micro_steps = values["micro_steps"][self.session.rank]


def _buckets(plan: Plan) -> tuple[list[int], list[int]]:
    """Padded length of each bucket, and the number of its batches in an epoch."""
    return [shape.bound for shape in plan.layout], [-(-shape.rows // plan.batch_size) for shape in plan.layout]
