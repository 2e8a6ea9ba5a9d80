"""One run of `python -m engine.train`: opens, resumes, builds, trains, records. Only rank 0 writes, only into RUN."""

from __future__ import annotations

import json
import platform
import shlex
import signal
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import native
from engine.checkpoint import Checkpoint, CheckpointFolder, weights_digest
from engine.config import TrainConfig
from engine.display import Display
from engine.environment import processor
from engine.errors import CheckpointError, Preempted, UsageError
from engine.input import ReviewSource
from engine.journal import Journal, read_journal
from engine.log import MetricsFile
from engine.losses import ReviewLoss, class_counts, classes_of
from engine.model import ReviewModel
from engine.plan import Plan
from engine.precision import weight_type
from engine.progress import Hooks
from engine.report import write_report_or_warn
from engine.resume import find_checkpoint
from engine.run_folder import give_run_folder_back, take_run_folder
from engine.saver import Saver
from engine.session import Session
from engine.signals import StopSignals
from engine.stage import stage
from engine.tensorboard import TensorBoard, require_tensorboard
from engine.timeline import Timeline
from engine.told import Teller
from engine.trace import Trace
from engine.trainer import Trainer
from engine.validation import measure
from engine.word_vectors import word_vectors
from native.dataset import Dataset, open_dataset
from native.files import write_durably
from native.format import DatasetError

# The fused kernels take a third of the time of the others (1 million parameters on a CPU core: 0.5 ms for 1.5 ms).
_OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": partial(torch.optim.SGD, fused=True),
    "adam": partial(torch.optim.Adam, fused=True),
    "adamw": partial(torch.optim.AdamW, fused=True),
}


class Run:
    """A training run on all ranks.

    Args:
        config: the options.
        session: the ranks.

    Raises:
        UsageError: on every rank: unusable data, RUN or checkpoint, or ranks that disagree.
    """

    def __init__(self, config: TrainConfig, session: Session) -> None:
        self.config, self.session = config, session
        self.out = Path(config.out)
        self._display = Display(session.root, config.view, config.log_seconds)
        self._metrics = MetricsFile(self.out / "metrics.jsonl", self._display.say)
        self._listeners: list[Callable[[dict[str, Any]], None]] = [self._metrics.append, self._display.event]
        """take the events of metrics.jsonl"""
        self._teller = Teller(session.size)
        self._open_out()
        self.data, self._validation = self._open_data()
        self._vocabulary = "".join(f"{word}\n" for word in self.data.vocabulary()).encode()
        versions = {f"version of {name}": version for name, version in _versions().items()}
        session.agree({"dataset digest": self.data.digest, **versions, **config.shared()})
        folder = CheckpointFolder(self.out / "checkpoints", config.keep_checkpoints)
        checkpoint = find_checkpoint(config, session, folder, self._facts(), self._display)
        best = checkpoint.values["best"] if checkpoint else None
        self._saver = Saver(config, session, folder, self._display.say, best)
        self._signals = StopSignals(session.heartbeat)
        self._trace = self._make_trace()
        self._timeline = Timeline()
        self._trainer = self._build(checkpoint)
        self._display.watch(
            session, self._trainer.hooks.watch, lambda: self._trainer.shares, lambda: self._signals.number
        )
        if checkpoint is not None:
            self._load(checkpoint)

    def train(self) -> None:
        """Train to the end; in a finished run say so and do nothing."""
        config, session, progress = self.config, self.session, self._trainer.progress
        early = self._enough()
        if progress.epoch >= config.epochs or early:
            self._display.say(
                f"{self.out}: finished already, {progress.epoch} of {config.epochs} epochs are done; "
                f"nothing to do (a larger {'--patience' if early else '--epochs'} goes on)"
            )
            if session.root and not self._metrics.ended():
                # The run was ended between its last checkpoint and this line.
                self._metrics.cut(progress.total_steps)
                self._record_end("finished")
            return
        if progress.total_steps:
            done = f"{progress.epoch} of {config.epochs} epochs done"
            self._display.say(f"{self.out}: going on from step {progress.total_steps}, {done}")
        if session.root:
            self._prepare_out(progress.total_steps)
        self._record_start()
        source = ReviewSource(
            self.data, self._trainer.plan, partial(classes_of, classes=config.model.classes), session.device
        )
        self._timeline.start(progress.seconds)
        try:
            self._trainer.fit(source, config.epochs)
        except Preempted:
            self._finish_trace()
            self._record_end("preempted")
            raise
        except Exception as error:
            self._record_end("failed", error=" ".join(str(error).split()))
            raise
        self._finish_trace()
        self._record_end("finished")
        if progress.epoch < config.epochs:
            best = self._saver.best_epoch(self._trainer.plan.steps_per_epoch)
            self._display.say(
                f"{self.out}: stopped after epoch {progress.epoch} of {config.epochs}: none of the last "
                f"{config.patience} was better on the validation split than epoch {best}"
            )
        self._display.say(
            f"{self.out}: finished; next: python -m engine.evaluate --data {shlex.quote(config.data)} "
            f"--checkpoint {shlex.quote(str(self._saver.best_checkpoint))}"
        )

    def close(self) -> None:
        """Close the dataset, and leave RUN to others."""
        self.data.close()
        self._validation.close()
        give_run_folder_back(self.out)

    def check_stopped(self) -> None:
        """For a process that goes on after the run: a signal may have come too late for a step to see it. Collective.

        Raises:
            Preempted: on every rank: a signal asked one of them to stop.
        """
        asked = max(self.session.comm.allgather(self._signals.number))
        if asked:
            raise Preempted("stopped between two trainings; the same command goes on", signal.Signals(asked))

    def _open_data(self) -> tuple[Dataset, Dataset]:
        problem: Exception | None = None
        stage_dir = Path(self.config.stage_dir) if self.config.stage_dir else None
        folder = stage(Path(self.config.data), stage_dir, self.session, self._display.say)
        try:
            data, validation = open_dataset(folder, "train"), open_dataset(folder, "validation")
            data.vocabulary()
            if self.config.patience and not len(validation):
                raise UsageError(
                    f"--patience {self.config.patience}: {self.config.data} has no validation rows to judge epochs by; "
                    "leave it out, or make the dataset with another --split"
                )
            if not len(data):
                raise DatasetError(
                    f"{self.config.data}: the training split has no rows; make the dataset with another --split"
                )
        except (DatasetError, UsageError) as error:
            problem = error
        self.session.together(problem)
        return data, validation

    def _load(self, checkpoint: Checkpoint) -> None:
        try:
            self._trainer.load_state(checkpoint.tensors, checkpoint.values)
        except (KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:
            # Its digest is right, so it was made so; all ranks hold the same values and come here together.
            raise CheckpointError(
                f"--resume {self.config.resume}: the checkpoint does not fit this model and optimizer "
                f"({' '.join(str(error).split())}); name another one, or another --out"
            ) from None

    def _facts(self) -> dict[str, Any]:
        """What of the dataset decides the course of training, for a checkpoint that is to go on with it."""
        manifest = self.data.manifest
        splits = {f"rows of {name}": split["bucket_rows"] for name, split in manifest["splits"].items()}
        fields = ("text", "vocabulary", "bucket_bounds", "chunk_rows", "token_type")
        return {"digest": self.data.digest, **splits, **{field: manifest[field] for field in fields}}

    def _journal(self) -> Journal | None:
        """What --shares-from names; rank 0 reads it for all. Collective."""
        if not self.config.shares_from:
            return None
        found, problem = None, None
        if self.session.root:
            try:
                bounds, path = self.data.bounds, Path(self.config.shares_from)
                found = read_journal(path, bounds, self.config.batch_size, self.session.size)
            except UsageError as error:
                problem = error
        self.session.together(problem)
        journal: Journal | None = self.session.comm.bcast(found, root=0)
        return journal

    def _build(self, checkpoint: Checkpoint | None) -> Trainer:
        config, session, size = self.config, self.session, self.config.model
        journal = self._journal()
        exchange = config.exchange
        if exchange == "auto" and journal is not None:
            exchange = journal.exchange
        elif exchange == "auto" and checkpoint is not None and len(checkpoint.values["ranks"]) == session.size:
            exchange = checkpoint.values["exchange"]  # by a measurement then, and the bits hang on it
        torch.manual_seed(config.seed)
        weights = config.class_weight_values(class_counts(self.data.stars, size.classes))
        self.loss = ReviewLoss(size, weights)
        self.model = ReviewModel(size, self.data.ids)
        rates = {"lr": config.learning_rate, "weight_decay": config.weight_decay}
        if config.optimizer == "sgd":
            rates["momentum"] = config.momentum
        if checkpoint is None and session.root and config.word_vectors == "cooccurrence":
            vectors = torch.from_numpy(word_vectors(self.data, size.embedding_size))
            with torch.no_grad():  # the other ranks get it with all weights
                self.model.embedding.weight[: len(vectors)] = vectors
        self.model.to(device=session.device, dtype=weight_type(config.precision))
        return Trainer(
            self.model,
            self.loss,
            _OPTIMIZERS[config.optimizer](self.model.parameters(), **rates),
            Plan(layout=self.data.layout, batch_size=config.batch_size, seed=config.seed),
            session,
            balance=config.balance,
            rebalance_every=config.rebalance_every,
            shares=config.shares,
            rank_caps=config.rank_caps,
            micro_batch=config.micro_batch,
            exchange=exchange,
            compression=config.compression,
            clip_norm=config.clip_norm,
            warmup_steps=config.warmup_steps,
            schedule=config.schedule,
            average_decay=config.average_decay,
            precision=config.precision,
            log_every=config.log_every,
            on_nonfinite=config.on_nonfinite,
            journal=journal,
            hooks=Hooks(
                record=self._record,
                validate=self._validate,
                save=self._save,
                timed=self._timeline.add,
                checkpoint_due=self._checkpoint_due,
                stop_asked=lambda: self._signals.number,
                enough=self._enough,
                display=self._display,
                trace=self._trace,
            ),
        )

    def _make_trace(self) -> Trace | None:
        steps, timeline = self.config.traced_steps(), self.config.horovod_timeline
        if steps is None and not timeline:
            return None
        trace = Trace(self.session, self.out, steps, timeline, self._display.say)
        self._listeners.append(trace.event)
        return trace

    def _finish_trace(self) -> None:
        if self._trace is not None:
            self._trace.finish()

    def _open_out(self) -> None:
        """Make RUN and see that it can be written, before any work."""
        problem: Exception | None = None
        if self.session.root:
            try:
                take_run_folder(self.out)
                if self.config.tensorboard:
                    require_tensorboard()
            except UsageError as error:
                problem = error
        self.session.together(problem)

    def _prepare_out(self, total_steps: int) -> None:
        """Cut RUN back to the step that training goes on from."""
        self._metrics.cut(total_steps if total_steps else None)
        self._saver.go_on_from(total_steps)
        if self.config.tensorboard:
            self._listeners.append(TensorBoard(self.out / "tensorboard", total_steps, self._display.say).record)
        write_durably(self.out / "config.json", (json.dumps(self.config.to_json(), indent=1) + "\n").encode())

    def _record(self, event: dict[str, Any]) -> None:
        if event["event"] == "epoch":
            event = {**event, "time": time.time()}
        for take in self._listeners:
            take(event)
        for line in self._teller.lines(event):
            self._display.say(line)

    def _record_start(self) -> None:
        session = self.session
        place = dict(zip(("host", "device", "threads"), session.place, strict=True))
        everyone = session.comm.gather({**place, "processor": processor()}, root=0)
        if not session.root:
            return
        shares = list(self._trainer.shares)
        step = self._trainer.progress.total_steps
        self._metrics.append(
            {
                "event": "start",
                "step": step,
                "versions": _versions(),
                "ranks": session.size,
                "hosts": everyone,
                "dataset_digest": self.data.digest,
                "dataset": {
                    "rows": {"train": len(self.data), "validation": len(self._validation)},
                    "words": self.data.manifest["vocabulary"]["words"],
                    "bounds": self.data.bounds,
                    "bucket_rows": [shape.rows for shape in self.data.layout],
                },
                "parameters": sum(weights.numel() for weights in self.model.parameters()),
                "shares": shares,
                "time": time.time(),
            }
        )

    def _record_end(self, status: str, **more: Any) -> None:
        if self.session.root:
            self._metrics.append(
                {
                    "event": "end",
                    "step": self._trainer.progress.total_steps,
                    "status": status,
                    "weights_digest": weights_digest(self.model),
                    "time": time.time(),
                    **more,
                }
            )
            if self._metrics.unwritten():
                self._display.say(f"warning: {self._metrics.path}: {self._metrics.unwritten()} lines are lost")
            if self._trainer.progress.epoch:
                write_report_or_warn(self.out, self._display.say)

    def _validate(self, shares: Sequence[int]) -> dict[str, Any] | None:
        done = self._trainer.progress
        times = self._timeline.collect(self.session.comm, done.total_steps, done.epoch + 1, done.seconds)
        if times is not None:
            self._record(times)
        if not len(self._validation):
            return None
        return measure(
            self._trainer.trained,
            self.loss,
            self._validation,
            self.config.batch_size,
            self.session.device,
            rank=self.session.rank,
            shares=shares,
            sum_over_ranks=self.session.sum_array,
        )

    def _enough(self) -> bool:
        """Asked between epochs, on rank 0."""
        return self._saver.enough(self._trainer.progress.epoch, self._trainer.plan.steps_per_epoch)

    def _checkpoint_due(self, total_steps: int) -> bool:
        return self._signals.take_continued() or self._saver.due(total_steps)

    def _save(self, figures: dict[str, Any] | None) -> bool:
        """Write a checkpoint; after an epoch (figures not None) it may be the best so far. Whether it was written."""
        about = {
            "config": self.config.to_json(),
            "class_weights": self.loss.class_weights,
            "text": self.data.manifest["text"],
            "ids": self.data.ids,
            "dataset": self._facts(),
            "versions": _versions(),
        }
        return self._saver.save(self._trainer, about, self._vocabulary, figures)


def _versions() -> dict[str, str]:
    names = ("torch", "horovod", "mpi4py", "numpy", "h5py", "uneven-engine")
    found = {"python": platform.python_version(), "native modules": native.sources_digest()}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed as a package"
    return found
