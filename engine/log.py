"""What a run tells: metrics.jsonl for programs, a progress bar or plain lines for people. Rank 0 only."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from native.files import write_durably

LINES_AT_ONCE = 100
"""lines that are tried again together: a full disk must not cost more with every line that waits"""
LINE_SECONDS = 30.0
"""seconds between progress lines where there is no terminal"""


class MetricsFile:
    """RUN/metrics.jsonl: one JSON object a line, each written whole.

    Args:
        path: of the file.
        warn: told in one line when it cannot be written, and when it can again.
    """

    def __init__(self, path: Path, warn: Callable[[str], None] = lambda text: None) -> None:
        self.path, self._warn = path, warn
        self._pending: list[str] = []
        """lines that wait until the file can be written again"""

    def append(self, event: dict[str, Any]) -> None:
        """Add one event; it is in the file when this returns, or, where the disk is full, in memory until it can be."""
        late = len(self._pending)
        self._pending.append(json.dumps(_finite(event)) + "\n")
        while self._pending:
            try:
                _append_whole(self.path, "".join(self._pending[:LINES_AT_ONCE]).encode())
            except OSError as error:
                if not late:
                    self._warn(
                        f"warning: {self.path}: cannot be written ({error.strerror}); training goes on, and the lines "
                        "wait in memory until it can: make room"
                    )
                return
            del self._pending[:LINES_AT_ONCE]
        if late:
            self._warn(f"{self.path}: can be written again; the {late} lines that waited are in it")

    def unwritten(self) -> int:
        """Lines that could not be written."""
        return len(self._pending)

    def ended(self) -> bool:
        """Whether the last line is a whole "end" event."""
        lines = self.path.read_bytes().splitlines(keepends=True) if self.path.exists() else []
        return bool(lines) and lines[-1].startswith(b'{"event": "end"') and lines[-1].endswith(b"}\n")

    def cut(self, step: int | None) -> None:
        """Keep what was recorded up to a step, drop the rest and a torn last line; None drops all."""
        if not self.path.exists():
            return
        kept = []
        for line in self.path.read_bytes().splitlines(keepends=True) if step is not None else []:
            try:
                event = json.loads(line)
            except ValueError:
                break
            whole = line.endswith(b"\n") and isinstance(event, dict)
            if not whole or event.get("step", 0) > (step or 0):
                break
            if event.get("event") != "end":  # the run goes on
                kept.append(line)
        write_durably(self.path, b"".join(kept))


def _append_whole(path: Path, data: bytes) -> None:
    """Append all of it or nothing."""
    with path.open("ab", buffering=0) as stream:
        size = stream.seek(0, os.SEEK_END)
        try:
            done = 0
            while done < len(data):
                done += stream.write(data[done:])
        except OSError:
            stream.truncate(size)
            raise


def _finite(value: Any) -> Any:
    # JSON has no NaN; null says that there is no number.
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


class Display:
    """Progress for people: a bar in a terminal; elsewhere a plain line now and then in epochs that take long.

    Args:
        active: whether this rank shows anything.
    """

    def __init__(self, active: bool) -> None:
        self._active = active
        self._bar: Any = None
        self._title = ""
        self._steps = self._done = 0
        self._first = 0
        self._began = self._told = 0.0

    def say(self, text: str) -> None:
        """One line."""
        if not self._active:
            return
        if self._bar is not None:
            self._bar.write(text)
        else:
            print(text, flush=True)

    def start_epoch(self, epoch: int, epochs: int, steps: int, done: int) -> None:
        """An epoch of `steps` steps begins, `done` of them done."""
        if not self._active:
            return
        self._title, self._steps, self._done = f"epoch {epoch}/{epochs}", steps, done
        self._began, self._first, self._told = time.monotonic(), done, time.monotonic()
        if sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=steps, initial=done, desc=self._title, unit="step", leave=False)

    def step(self, loss: float) -> None:
        """One step more, with its loss."""
        self._done += 1
        if self._bar is not None:
            self._bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
            self._bar.update()
        elif self._active and time.monotonic() - self._told >= LINE_SECONDS:
            self._told = time.monotonic()
            left = (self._told - self._began) / (self._done - self._first) * (self._steps - self._done)
            self.say(f"{self._title}: step {self._done} of {self._steps}, loss {loss:.4f}, {left:.0f} s left")

    def end_epoch(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
