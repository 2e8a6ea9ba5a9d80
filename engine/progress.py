"""Where training stands, what it tells on the way, and the events it records."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from engine.balance import Achieved
from engine.display import Display
from engine.speed import ProfilePoint
from engine.timing import STARVED
from engine.watch import Watch

if TYPE_CHECKING:
    from engine.trace import Trace


@dataclass
class Progress:
    """Where training stands, and the running sums of the epoch; the same on every rank."""

    epoch: int = 0
    """epochs done"""
    step: int = 0
    """steps done of the present epoch"""
    total_steps: int = 0
    loss: float = 0.0
    weight: float = 0.0
    rows: int = 0
    seconds: float = 0.0
    skipped: int = 0
    """steps left out because a float16 gradient overflowed, since training began"""
    nonfinite: int = 0
    """steps left out because a loss or gradient was not a finite number (--on-nonfinite skip), since training began"""

    def start_epoch(self) -> None:
        """One epoch more is done; the sums begin again."""
        self.epoch, self.step = self.epoch + 1, 0
        self.loss = self.weight = self.seconds = 0.0
        self.rows = 0


@dataclass
class Hooks:
    """What a trainer calls; every one may be left as it is."""

    record: Callable[[dict[str, Any]], None] = lambda event: None
    """takes the events of metrics.jsonl, on rank 0"""
    validate: Callable[[Sequence[int]], dict[str, Any] | None] = lambda shares: None
    """measures the model after an epoch, on all ranks together; takes the shares"""
    save: Callable[[dict[str, Any] | None], bool | None] = lambda figures: None
    """writes a checkpoint, on all ranks together; takes the epoch's validation figures, None inside an epoch; returns
    False where it could not be written"""
    timed: Callable[[int, int, float, float, float], None] = lambda bound, rows, compute, input, wait: None
    """takes what each step cost this rank, on every rank: padded length, local rows, seconds of compute, input, wait"""
    enough: Callable[[], bool] = lambda: False
    """asked on rank 0 before each epoch: whether training ends here, before its last epoch"""
    checkpoint_due: Callable[[int], bool] = lambda total_steps: False
    """asked on rank 0 after each step"""
    stop_asked: Callable[[], int] = lambda: 0
    """asked on every rank at each step: the number of the signal that asks the run to stop, 0 for none"""
    display: Display = field(default_factory=lambda: Display(active=False))
    watch: Watch = field(default_factory=Watch)
    """takes note of what this rank is at, on every rank"""
    trace: Trace | None = None
    """records the time line of some steps, on all ranks together"""


def shares_event(
    step: int,
    shares: Sequence[int],
    reason: str,
    gain: float,
    bucket: int | None = None,
    first_step: int | None = None,
    changed: bool = True,
) -> dict[str, Any]:
    """The "shares" event: rows of a full batch per rank.

    Args:
        step: steps done when it was decided.
        bucket: the padded length for which it holds; None for all.
        first_step: number of the first step that uses them; None for the next one.
        changed: whether they differ from those before; what was kept is told as a mean over the buckets.
    """
    return {
        "event": "shares",
        "step": step,
        "bucket": bucket,
        "shares": list(shares),
        "reason": reason,
        "predicted_gain": gain,
        "first_step": step + 1 if first_step is None else first_step,
        "changed": changed,
    }


def gain_event(step: int, achieved: Achieved) -> dict[str, Any]:
    """The "gain" event: what became of a change of shares, one window later."""
    return {
        "event": "gain",
        "step": step,
        "decided_at": achieved.step,
        "predicted_gain": achieved.predicted_gain,
        "achieved_gain": achieved.achieved_gain,
    }


def profile_event(step: int, profiles: Sequence[Sequence[ProfilePoint]]) -> dict[str, Any]:
    """The "profile" event: per rank, what batches took in the start-up profile, as [padded length, rows, seconds]."""
    points = [[[point.bound, point.rows, point.seconds] for point in rank] for rank in profiles]
    return {"event": "profile", "step": step, "points": points}


def epoch_event(
    progress: Progress,
    validation: dict[str, Any] | None,
    shares: Sequence[int],
    clocks: Sequence[tuple[float, float, float]],
) -> dict[str, Any]:
    """The "epoch" event, from the running sums and each rank's seconds of compute, input and wait."""
    compute, read, wait = (list(column) for column in zip(*clocks, strict=True))
    return {
        "event": "epoch",
        "step": progress.total_steps,
        "epoch": progress.epoch + 1,
        "train_loss": progress.loss / progress.weight if progress.weight else 0.0,
        "validation": validation,
        "seconds": progress.seconds,
        "rows": progress.rows,
        "rows_per_second": progress.rows / progress.seconds,
        "skipped_steps": progress.skipped,
        "nonfinite_steps": progress.nonfinite,
        "shares": list(shares),
        "compute_seconds": compute,
        "input_seconds": read,
        "wait_seconds": wait,
        "starved_ranks": starved_ranks(read, progress.seconds),
    }


def starved_ranks(input_seconds: Sequence[float], seconds: float) -> list[int]:
    """Ranks that waited for their input for a part of the epoch that shows: a fault that shares cannot mend."""
    return [rank for rank, waited in enumerate(input_seconds) if waited > STARVED * seconds]
