"""How fast a run is and how long it will take, from the steps that have ended."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field

from engine.view import Snapshot, duration

RECENT_SECONDS = 20.0
"""rows/s and the time left follow the steps of so long"""
IDLE_SECONDS = 3.0
"""after which it is told that no step has ended"""


@dataclass
class _Epoch:
    """The epoch under way, as far as this process has seen it."""

    number: int = 1
    epochs: int = 1
    size: int = 1
    """its steps"""
    first: int = 0
    """steps that were done when it began here"""
    steps: int = 0
    rows: int = 0
    loss: float = 0.0
    """of the last step"""
    loss_sum: float = 0.0
    stepped: float = field(default_factory=time.monotonic)
    """when the last step ended"""
    ended: float | None = None
    """when its steps were over"""
    samples: deque[tuple[float, int, int]] = field(default_factory=deque)
    """time, steps and rows"""


class Pace:
    """Counts steps in the training thread, and answers in another."""

    def __init__(self) -> None:
        self._epoch = _Epoch()
        self._between = 0.0
        """seconds that measuring and saving took after the last epoch"""

    def start_epoch(self, epoch: int, epochs: int, steps: int, done: int) -> None:
        """An epoch of `steps` steps begins, `done` of them done."""
        now, before = time.monotonic(), self._epoch
        if before.ended is not None:
            self._between = now - before.ended
        self._epoch = _Epoch(epoch, epochs, steps, done, stepped=now, samples=deque([(now, 0, 0)]))

    def step(self, loss: float, rows: int) -> None:
        """A step has ended: its mean loss, and rows of the global batch."""
        epoch = self._epoch
        epoch.loss = loss
        epoch.loss_sum += loss
        epoch.rows += rows
        epoch.steps += 1
        epoch.stepped = time.monotonic()

    def end_epoch(self) -> None:
        """The epoch's steps are over."""
        self._epoch.ended = time.monotonic()

    def now(self, now: float) -> Snapshot:
        """What stands at a moment of the monotonic clock, not before the last one that was asked for."""
        epoch = self._epoch
        steps, samples = epoch.steps, epoch.samples
        if epoch.ended is None:
            samples.append((now, steps, epoch.rows))
            while len(samples) > 2 and samples[1][0] <= now - RECENT_SECONDS:
                samples.popleft()
        rate = epoch_left = run_left = None
        made = samples[-1][1] - samples[0][1] if samples else 0
        if made:
            seconds = samples[-1][0] - samples[0][0]
            rate = (samples[-1][2] - samples[0][2]) / seconds
            epoch_left = seconds / made * (epoch.size - epoch.first - steps)
            later = (epoch.epochs - epoch.number) * (seconds / made * epoch.size + self._between)
            run_left = epoch_left + self._between + later
        activity = ""
        if epoch.ended is not None:
            activity = "measuring and saving"
        elif now - epoch.stepped > IDLE_SECONDS:
            activity = f"no step for {duration(now - epoch.stepped)}"
        return Snapshot(
            epoch.number,
            epoch.epochs,
            epoch.first + steps,
            epoch.size,
            epoch.loss if steps else None,
            epoch.loss_sum / steps if steps else None,
            rate,
            epoch_left,
            run_left,
            activity,
        )
