"""Checkpoints of a run: when one is due, which is the best so far, and whether a better one may still come."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from engine.checkpoint import Checkpoint, CheckpointFolder
from engine.config import TrainConfig
from engine.errors import TrainingError
from engine.session import Session
from engine.trainer import Trainer


class Saver:
    """Writes the checkpoints of a run, on rank 0.

    Args:
        config: the options.
        session: the ranks.
        folder: RUN/checkpoints.
        say: tells people.
        best: score and step of the best checkpoint so far; None for none.
    """

    def __init__(
        self,
        config: TrainConfig,
        session: Session,
        folder: CheckpointFolder,
        say: Callable[[str], None],
        best: dict[str, Any] | None,
    ) -> None:
        self._config, self._session, self._folder, self._say = config, session, folder, say
        self._best = best
        self._saved_at = time.monotonic()

    @property
    def best_checkpoint(self) -> Path:
        """The link to the best one."""
        return self._folder.folder / "best"

    def best_epoch(self, steps_per_epoch: int) -> int:
        """Epoch of the best checkpoint, counted from 1; 0 for none."""
        return self._best["step"] // steps_per_epoch if self._best else 0

    def enough(self, epochs_done: int, steps_per_epoch: int) -> bool:
        """Whether as many epochs as --patience allows have brought no better score; asked between epochs."""
        patience = self._config.patience
        return bool(patience and self._best and epochs_done - self.best_epoch(steps_per_epoch) >= patience)

    def due(self, total_steps: int) -> bool:
        """Whether a checkpoint is due after so many steps."""
        every, minutes = self._config.checkpoint_every, self._config.checkpoint_minutes
        late = minutes and time.monotonic() - self._saved_at >= minutes * 60
        return bool((every and total_steps % every == 0) or late)

    def go_on_from(self, total_steps: int) -> None:
        """Cut the folder back to the step that training goes on from."""
        if not self._folder.go_on_from(total_steps, self._best["step"] if self._best else None):
            self._best = None

    def save(self, trainer: Trainer, about: dict[str, Any], words: bytes, figures: dict[str, Any] | None) -> bool:
        """Write a checkpoint. Collective.

        Args:
            trainer: whose state is saved.
            about: what else belongs to it; plain values.
            words: of the vocabulary, a line each.
            figures: validation figures after an epoch, which may be the best so far; empty where there is no
                validation split; None inside an epoch.

        Returns:
            Whether it was written.

        Raises:
            TrainingError: on every rank: the last one of the run could not be written.
        """
        tensors, values = trainer.state()
        problem = None
        if self._session.root:
            vocabulary = torch.frombuffer(bytearray(words), dtype=torch.uint8) if words else torch.zeros(0).byte()
            whole = Checkpoint({**tensors, "vocabulary": vocabulary}, {**values, **about})
            problem = self._write(whole, trainer.progress.total_steps, figures)
        self._saved_at = time.monotonic()
        problem = self._session.comm.bcast(problem, root=0)
        if problem and trainer.progress.epoch >= self._config.epochs:
            raise TrainingError(f"{problem}; the trained model is lost, the checkpoint before it still loads")
        if problem:
            self._say(f"warning: {problem}; training goes on, the checkpoint before it still loads")
        return not problem

    def _write(self, checkpoint: Checkpoint, step: int, figures: dict[str, Any] | None) -> str | None:
        """Write a checkpoint; what went wrong, or None."""
        best = self._best
        if figures is not None:
            # Without a validation split every epoch counts as the best so far.
            score = [figures["macro_f1"], -figures["loss"]] if figures else []
            if best is None or not score or score > best["score"]:
                best = {"score": score, "step": step}
        checkpoint.values["best"] = best
        try:
            self._folder.save(checkpoint, step, best is not None and best["step"] == step)
        except OSError as error:
            return f"{self._folder.folder}: no checkpoint could be written at step {step} ({error.strerror})"
        self._best = best
        return None
