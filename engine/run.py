"""One run of `python -m engine.train`: opens, resumes, builds, trains, records. Only rank 0 writes, only into RUN."""

from __future__ import annotations

import json
import platform
import socket
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from engine.checkpoint import Checkpoint, CheckpointFolder, load_checkpoint, weights_digest
from engine.config import TrainConfig
from engine.errors import CheckpointError, UsageError
from engine.input import ReviewSource
from engine.log import Display, MetricsFile
from engine.losses import ReviewLoss, class_counts, classes_of
from engine.model import ReviewModel
from engine.plan import Plan
from engine.session import Session
from engine.trainer import Hooks, Trainer
from engine.validation import measure
from native.dataset import Dataset, open_dataset
from native.files import write_durably
from native.format import DatasetError

_OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
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
        self._folder = CheckpointFolder(self.out / "checkpoints", config.keep_checkpoints)
        self._metrics = MetricsFile(self.out / "metrics.jsonl")
        self._display = Display(active=session.root)
        self.data, self._validation = self._open_data()
        session.agree({"options": config.to_json(), "dataset digest": self.data.digest, "versions": _versions()})
        checkpoint = self._find_checkpoint()
        self._best: list[float] | None = checkpoint.values["best"] if checkpoint else None
        self._saved_at = time.monotonic()
        self._trainer = self._build()
        if checkpoint is not None:
            self._trainer.load_state(checkpoint.part("model"), checkpoint.part("optimizer"), checkpoint.values)

    def train(self) -> None:
        """Train to the end; in a finished run say so and do nothing."""
        config, session, progress = self.config, self.session, self._trainer.progress
        if progress.epoch >= config.epochs:
            self._display.say(
                f"{self.out}: finished already, {progress.epoch} of {config.epochs} epochs are done; "
                "nothing to do (a larger --epochs goes on)"
            )
            return
        if session.root:
            self._prepare_out(progress.total_steps)
        self._record_start()
        source = ReviewSource(
            self.data, self._trainer.plan, partial(classes_of, classes=config.model.classes), session.device
        )
        try:
            self._trainer.fit(source, config.epochs)
        except Exception as error:
            self._record_end("failed", error=" ".join(str(error).split()))
            raise
        self._record_end("finished")
        self._display.say(
            f"{self.out}: finished; next: python -m engine.evaluate --data {config.data} "
            f"--checkpoint {self.out}/checkpoints/best"
        )

    def _open_data(self) -> tuple[Dataset, Dataset]:
        problem: Exception | None = None
        try:
            data, validation = open_dataset(self.config.data, "train"), open_dataset(self.config.data, "validation")
            if not len(data):
                raise DatasetError(
                    f"{self.config.data}: the training split has no rows; make the dataset with another --split"
                )
        except DatasetError as error:
            problem = error
        self.session.together(problem)
        return data, validation

    def _find_checkpoint(self) -> Checkpoint | None:
        """The checkpoint to go on from; rank 0 reads it for all, so that RUN need not be on a shared disk."""
        found: Checkpoint | None = None
        problem: Exception | None = None
        if self.session.root:
            try:
                found = self._read_checkpoint()
            except UsageError as error:
                problem = error
        self.session.together(problem)
        checkpoint: Checkpoint | None = self.session.comm.bcast(found, root=0)
        return checkpoint

    def _read_checkpoint(self) -> Checkpoint | None:
        resume = self.config.resume
        if resume == "never":
            if self._folder.steps():
                raise UsageError(
                    f"{self.out}: holds checkpoints, and --resume never would overwrite them; name another --out "
                    "or leave --resume out to go on"
                )
            return None
        if resume == "auto":
            path, checkpoint, problems = self._folder.latest_good()
            for text in problems:
                self._display.say(f"warning: {text}")
            if checkpoint is None and problems:
                raise CheckpointError(
                    f"{self._folder.folder}: none of its checkpoints is usable; name another --out to start over"
                )
        else:
            path = Path(resume)
            checkpoint = load_checkpoint(path)
        if checkpoint is None:
            return None
        different = self.config.differences(checkpoint.values["config"])
        if checkpoint.values["dataset_digest"] != self.data.digest:
            different.append(f"--data {self.config.data} is another dataset than the checkpoint's")
        if different:
            raise CheckpointError(
                f"{path}: cannot go on from it: {'; '.join(different)}; give the same options, or another "
                "--out to start over"
            )
        progress = checkpoint.values["progress"]
        self._display.say(
            f"{self.out}: going on from {path} (step {progress['total_steps']}, {progress['epoch']} epochs done)"
        )
        return checkpoint

    def _build(self) -> Trainer:
        config, session, size = self.config, self.session, self.config.model
        torch.manual_seed(config.seed)
        weights = config.class_weight_values(class_counts(self.data.stars, size.classes))
        self.loss = ReviewLoss(size, weights)
        self.model = ReviewModel(size, self.data.ids)
        rates = {"lr": config.learning_rate, "weight_decay": config.weight_decay}
        if config.optimizer == "sgd":
            rates["momentum"] = config.momentum
        kind = torch.float64 if config.precision == "float64" else torch.float32
        self.model.to(device=session.device, dtype=kind)
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
            clip_norm=config.clip_norm,
            warmup_steps=config.warmup_steps,
            precision=config.precision,
            log_every=config.log_every,
            hooks=Hooks(
                record=self._record,
                validate=self._validate,
                save=self._save,
                checkpoint_due=self._checkpoint_due,
                display=self._display,
            ),
        )

    def _prepare_out(self, total_steps: int) -> None:
        self.out.mkdir(parents=True, exist_ok=True)
        self._metrics.cut(total_steps if total_steps else None)
        self._folder.drop_after(total_steps)
        write_durably(self.out / "config.json", (json.dumps(self.config.to_json(), indent=1) + "\n").encode())

    def _record(self, event: dict[str, Any]) -> None:
        self._metrics.append(event)
        if event["event"] == "epoch":
            self._display.say(_epoch_line(event))
        elif event["event"] == "shares" and self.session.size > 1:
            self._display.say(f"step {event['step']}: shares {event['shares']} ({event['reason']})")

    def _record_start(self) -> None:
        session = self.session
        everyone = session.comm.gather(
            {"host": socket.gethostname(), "device": _device_name(session.device), "threads": session.threads}, root=0
        )
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
                "shares": shares,
                "time": time.time(),
            }
        )
        self._record(
            {
                "event": "shares",
                "step": step,
                "bucket": None,
                "shares": shares,
                "predicted_gain": 0.0,
                "reason": "start" if not step else "resumed",
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
                    **more,
                }
            )

    def _validate(self, shares: Sequence[int]) -> dict[str, Any] | None:
        if not len(self._validation):
            return None
        return measure(
            self.model,
            self.loss,
            self._validation,
            self.config.batch_size,
            self.session.device,
            rank=self.session.rank,
            shares=shares,
            sum_over_ranks=self._sum,
        )

    def _sum(self, values: np.ndarray) -> np.ndarray:
        total = np.empty_like(values)
        self.session.comm.Allreduce(values, total)
        return total

    def _checkpoint_due(self, total_steps: int) -> bool:
        every, minutes = self.config.checkpoint_every, self.config.checkpoint_minutes
        return bool(
            (every and total_steps % every == 0) or (minutes and time.monotonic() - self._saved_at >= minutes * 60)
        )

    def _save(self, figures: dict[str, Any] | None) -> None:
        """Write a checkpoint; after an epoch (figures not None) it may be the best one so far."""
        tensors, values = self._trainer.state()
        best = False
        if figures is not None:
            # Without a validation split every epoch counts as the best so far.
            score = [figures["macro_f1"], -figures["loss"]] if figures else None
            best = score is None or self._best is None or score > self._best
            self._best = score if best else self._best
        self._saved_at = time.monotonic()
        if not self.session.root:
            return
        words = "".join(f"{word}\n" for word in self.data.vocabulary()).encode()
        tensors["vocabulary"] = (
            torch.frombuffer(bytearray(words), dtype=torch.uint8) if words else torch.zeros(0).byte()
        )
        values |= {
            "config": self.config.to_json(),
            "text": self.data.manifest["text"],
            "ids": self.data.ids,
            "dataset_digest": self.data.digest,
            "best": self._best,
            "versions": _versions(),
        }
        try:
            self._folder.save(Checkpoint(tensors, values), self._trainer.progress.total_steps, best)
        except OSError as error:
            self._display.say(
                f"warning: {self._folder.folder}: no checkpoint at step "
                f"{self._trainer.progress.total_steps} ({error}); training goes on, the one before it still loads"
            )


def _epoch_line(event: dict[str, Any]) -> str:
    figures = event["validation"]
    text = f"epoch {event['epoch']}: loss {event['train_loss']:.4f}"
    if figures:
        text += (
            f", validation loss {figures['loss']:.4f}, accuracy {figures['accuracy']:.4f} "
            f"(always the most frequent class: {figures['null_accuracy']:.4f}), macro-F1 {figures['macro_f1']:.4f}"
        )
    compute = event["compute_seconds"]
    text += f", {event['seconds']:.1f} s, {event['rows_per_second']:,.0f} rows/s"
    if len(compute) > 1 and max(compute):
        text += f", mean/max compute {sum(compute) / len(compute) / max(compute):.2f}"
    return text


def _versions() -> dict[str, str]:
    names = ("torch", "horovod", "mpi4py", "numpy", "h5py", "uneven-engine")
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed as a package"
    return found


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
