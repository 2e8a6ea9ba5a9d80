"""The figures of metrics.jsonl as scalars for TensorBoard, in RUN/tensorboard. Rank 0 only.

Event files are written by tensorboardX, record by record and at once: its SummaryWriter has a thread and a short queue,
on which training would wait for ever once the disk is full.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from engine.errors import UsageError

INSTALL = "pip install 'tensorboardX==2.6.5'"


def require_tensorboard() -> None:
    """See that events can be written here.

    Raises:
        UsageError: the package is missing.
    """
    try:
        import tensorboardX.event_file_writer  # noqa: F401
    except ImportError as error:
        raise UsageError(f"--tensorboard needs a package that is not here ({error}): {INSTALL}") from None


class TensorBoard:
    """Writes one event file from its making on.

    Args:
        folder: RUN/tensorboard; made when missing.
        step: steps done. What earlier files hold of later steps, TensorBoard drops.
        warn: told in one line when nothing more can be written.
    """

    def __init__(self, folder: Path, step: int, warn: Callable[[str], None]) -> None:
        self._folder, self._warn = folder, warn
        self._writer: Any = None
        self._write(self._open, step)

    def record(self, event: dict[str, Any]) -> None:
        """Take in an event of metrics.jsonl."""
        found = dict(scalars(event))
        if found and self._writer is not None:
            self._write(self._add, event["step"], found)

    def _write(self, work: Callable[..., object], *arguments: Any) -> None:
        try:
            work(*arguments)
        except OSError as error:
            self._writer = None
            self._warn(
                f"warning: {self._folder}: cannot be written ({error.strerror}); training goes on without figures for "
                "TensorBoard, metrics.jsonl has them all"
            )

    def _open(self, step: int) -> None:
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        self._folder.mkdir(parents=True, exist_ok=True)
        writer = EventsWriter(str(self._folder / "events"), f".{os.getpid()}")
        # "Started at this step" tells readers to drop what they have read of this step and later ones.
        start = SessionLog(status=SessionLog.START)
        writer.write_event(Event(wall_time=time.time(), step=step + 1, session_log=start))
        writer.flush()
        self._writer = writer

    def _add(self, step: int, values: dict[str, float]) -> None:
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.proto.summary_pb2 import Summary

        summary = Summary(value=[Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()])
        self._writer.write_event(Event(wall_time=time.time(), step=step, summary=summary))
        self._writer.flush()


def scalars(event: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """What an event of metrics.jsonl says in numbers, by TensorBoard's tags."""
    if event["event"] == "step":
        yield "train/loss", event["loss"]
        if "learning_rate" in event:
            yield "train/learning rate", event["learning_rate"]
    elif event["event"] == "gain":
        yield "balance/predicted gain", event["predicted_gain"]
        yield "balance/achieved gain", event["achieved_gain"]
    elif event["event"] == "epoch":
        yield "train/loss of the epoch", event["train_loss"]
        yield "speed/rows per second", event["rows_per_second"]
        yield "speed/seconds", event["seconds"]
        for name, value in (event["validation"] or {}).items():
            if isinstance(value, int | float):
                yield f"validation/{name}", value
        for what in ("shares", "compute_seconds", "input_seconds", "wait_seconds"):
            for rank, value in enumerate(event[what]):
                yield f"{what.replace('_', ' ')}/rank {rank}", value
