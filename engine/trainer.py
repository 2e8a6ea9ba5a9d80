"""The training loop: batch, forward, backward, exchange, step; shares and checkpoints at their time."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from engine.checkpoint import load_optimizer_state, optimizer_state, weights_digest
from engine.compute import LocalWork
from engine.errors import TrainingError
from engine.exchange import Control, GradientExchange
from engine.input import LocalBatch, Prefetcher, Source, as_source
from engine.plan import Plan
from engine.precision import Precision
from engine.profile import SMALLEST, best_micro_steps, profile
from engine.progress import Hooks, Progress, epoch_event
from engine.rebalance import Rebalancer
from engine.session import Session
from engine.shares import Table, as_table
from engine.timing import ComputeTimer, RankClock

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
        precision: "float64", "float32", "bfloat16" or "float16".
        log_every: steps between "step" events.
        hooks: what is called on the way.
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
        precision: str = "float32",
        log_every: int = 50,
        hooks: Hooks | None = None,
    ) -> None:
        self.model, self.loss, self.optimizer, self.plan, self.session = model, loss, optimizer, plan, session
        balance = balance or ("off" if shares else "auto")
        self.progress = Progress()
        self.hooks = hooks or Hooks()
        self._clip_norm, self._warmup_steps, self._log_every = clip_norm, warmup_steps, log_every
        self._rates = [float(group["lr"]) for group in optimizer.param_groups]
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
            }
        )
        self.rebalancer = Rebalancer(
            session, *_buckets(plan), plan.batch_size, balance, rebalance_every, shares, rank_caps
        )
        self.precision = Precision(precision, session.device)
        self._broadcast_weights()
        self._exchange = GradientExchange(model, session, exchange, compression)
        self._timer = ComputeTimer(session.device)
        self._work = LocalWork(
            model, loss, self.precision, self._exchange, self._timer, (plan.seed, session.rank), micro_batch
        )
        self._clock = RankClock([shape.bound for shape in plan.layout])
        self._schedule: Sequence[Table] = [self.rebalancer.table]
        self._started = self._shares_resumed = False

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
        """
        self.session.agree({"epochs": epochs, "progress": self.progress.total_steps})
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
        collecting = gc.isenabled()
        gc.disable()
        try:
            while self.progress.epoch < epochs:
                self.hooks.display.start_epoch(
                    self.progress.epoch + 1, epochs, self.plan.steps_per_epoch, self.progress.step
                )
                while self.progress.step < self.plan.steps_per_epoch:
                    due = self._step(batches)
                    if self.progress.step < self.plan.steps_per_epoch:
                        self._balance_step(batches)
                        self._schedule = batches.schedule()
                        if due:
                            self.hooks.save(None)
                self._end_epoch(batches, source)
        finally:
            if collecting:
                gc.enable()
            self._exchange.close()
            batches.close()

    def _start(self, source: Source) -> None:
        """Time batches of several sizes, once, where shares may change: prior knowledge for the first decisions."""
        if self._started or not self.rebalancer.active:
            return
        self._started = True
        points = profile(self._work, self.model, self.plan, source, self.session.device)
        self._exchange.clear()
        self._exchange.close()
        if self._work.micro_batch == 0:
            self._work.micro_steps = best_micro_steps(points)
        self.rebalancer.start(points, keep=self._shares_resumed)
        self._record_events()
        if not self._shares_resumed:
            self._schedule = [self.rebalancer.table]

    def _step(self, batches: Prefetcher) -> bool:
        """One step; whether a checkpoint is due after it."""
        began = time.perf_counter()
        batch = batches.next()
        batch.hand_over()
        in_hand = time.perf_counter()
        self._timer.start()
        self._exchange.clear()
        loss, weight = self._work.run(batch, self.progress.total_steps)
        self._timer.stop()
        due = self.session.root and self.hooks.checkpoint_due(self.progress.total_steps + 1)
        total = self._exchange.sum_over_ranks(loss, weight, Control(rows=batch.rows, checkpoint=float(due)))
        compute = self._timer.seconds()
        waited = max(0.0, time.perf_counter() - in_hand - compute)
        assert int(total.rows) == batch.whole.rows, "the ranks' slices do not make the global batch"
        applied = self._apply(total, batch)
        if (self.progress.total_steps + 1) % _COLLECT_EVERY == 0:
            gc.collect()
        cost = batch.bound, batch.rows, compute, in_hand - began, waited
        self._clock.add(*cost)
        self.hooks.timed(*cost)
        self._count(total, time.perf_counter() - began, applied)
        return total.checkpoint > 0

    def _apply(self, total: Control, batch: LocalBatch) -> bool:
        """Make the summed gradient that of the weighted mean, clip it, and step; whether the step was made."""
        if total.outside:
            raise TrainingError(
                f"step {self.progress.total_steps + 1}: an embedding's weight got a gradient in rows that the module "
                "did not look up (it is used elsewhere too), so they were not exchanged; set --exchange dense"
            )
        if total.weight > 0:
            factor = batch.whole.rows / total.weight / self.precision.scale
            if factor != 1.0:
                self._exchange.scale(factor)
        norm = self._exchange.norm()
        finite = math.isfinite(norm) and not total.nonfinite
        if self.precision.overflowed(finite):
            return False
        if not finite:
            self._stop_nonfinite(total)
        if self._clip_norm and norm > self._clip_norm:
            self._exchange.scale(self._clip_norm / norm)
        if self.progress.total_steps < self._warmup_steps:
            self._set_rates((self.progress.total_steps + 1) / self._warmup_steps)
        self.optimizer.step()
        return True

    def _set_rates(self, part: float) -> None:
        for group, rate in zip(self.optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * part

    def _stop_nonfinite(self, total: Control) -> None:
        what = "the gradient is"
        if total.nonfinite:
            where = (
                f"rank {int(total.nonfinite_ranks) - 1}" if total.nonfinite == 1 else f"{int(total.nonfinite)} ranks"
            )
            what = f"the loss of {where} is"
        raise TrainingError(
            f"step {self.progress.total_steps + 1}: {what} not a finite number, so the step was not applied; the last "
            "checkpoint is good: resume from it with a lower --learning-rate or --clip-norm"
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
        else:
            progress.skipped += 1
        mean = total.loss / total.weight if total.weight else 0.0
        self.hooks.display.step(mean)
        if self.session.root and progress.total_steps % self._log_every == 0:
            self.hooks.record(
                {"event": "step", "step": progress.total_steps, "epoch": progress.epoch + 1, "loss": mean}
            )

    def _balance_step(self, batches: Prefetcher) -> None:
        """What balancing does after a step inside an epoch; it waits for nobody."""
        step, total = self.progress.step, self.progress.total_steps
        left = self.plan.steps_per_epoch - step
        if self.rebalancer.after_step(step, total, left, self._clock, self._work.most_rows):
            assert self.rebalancer.first_step == total + batches.ahead + 1, "new shares begin elsewhere on this rank"
            batches.set_shares(self.rebalancer.table)
        self._record_events()

    def _end_epoch(self, batches: Prefetcher, source: Source) -> None:
        """Validate, choose the next epoch's shares, record the epoch, save."""
        self.hooks.display.end_epoch()
        self._keep_replicas_equal()
        shares = self.shares
        figures = self.hooks.validate(shares)
        clocks = self.session.comm.gather(self._clock.totals(), root=0)
        self._probe(source)
        self.rebalancer.at_epoch_end(self.progress.total_steps, self._clock, self._work.most_rows)
        if clocks is not None:
            self.hooks.record(epoch_event(self.progress, figures, shares, clocks))
        self._record_events()
        batches.set_shares(self.rebalancer.table)
        self.progress.start_epoch()
        self._clock.start_epoch()
        self._schedule = batches.schedule()
        self.hooks.save(figures or {})

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

    def _keep_replicas_equal(self) -> None:
        """Give all ranks rank 0's state where unlike hardware has rounded the same updates differently."""
        digests = self.session.comm.allgather(weights_digest(self.model))
        different = [rank for rank, digest in enumerate(digests) if digest != digests[0]]
        if not different:
            return
        self._broadcast_weights()
        if self.session.root:
            step = self.progress.total_steps
            self.hooks.record({"event": "resync", "step": step, "ranks": different})

    def _broadcast_weights(self) -> None:
        """Rank 0's parameters, buffers and optimiser state, to all."""
        tensors = [*self.model.state_dict().values(), *optimizer_state(self.optimizer)[0].values()]
        self.session.broadcast(tensors)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything that training goes on from: tensors and plain values. Collective (the ranks' timings)."""
        tensors = {f"model/{name}": tensor for name, tensor in self.model.state_dict().items()}
        optimizer_tensors, optimizer_values = optimizer_state(self.optimizer)
        tensors |= {f"optimizer/{name}": tensor for name, tensor in optimizer_tensors.items()}
        return tensors, {
            "progress": asdict(self.progress),
            "schedule": [[list(shares) for shares in table] for table in self._schedule],
            "clocks": self.session.comm.allgather(self._clock.totals()),
            "optimizer": optimizer_values,
            "precision": self.precision.state(),
        }

    def load_state(self, model: dict[str, Tensor], optimizer: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Go on from what `state` returned.

        The shares are taken over where they fit: the same number of ranks, balancing on, within the caps.
        """
        self.model.load_state_dict(model)
        load_optimizer_state(self.optimizer, optimizer, values["optimizer"])
        self.precision.load_state(values["precision"])
        self.progress = Progress(**values["progress"])
        self._set_rates(1.0)  # the rates of this run, not those that the checkpoint was trained with
        schedule = [as_table(shares, len(self.plan.layout)) for shares in values["schedule"]]
        self._shares_resumed = self.rebalancer.resume(schedule)
        if self._shares_resumed:
            self._schedule = schedule
        if len(values["clocks"]) == self.session.size:
            self._clock.start_epoch(tuple(values["clocks"][self.session.rank]))


def _buckets(plan: Plan) -> tuple[list[int], list[int]]:
    """Padded length of each bucket, and the number of its batches in an epoch."""
    return [shape.bound for shape in plan.layout], [-(-shape.rows // plan.batch_size) for shape in plan.layout]
