"""What a run tells: metrics.jsonl for programs, a progress bar or plain lines for people. Rank 0 only."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

from native.files import write_durably


class MetricsFile:
    """RUN/metrics.jsonl: one JSON object a line, each written whole."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, event: dict[str, Any]) -> None:
        """Add one event; it is in the file when this returns."""
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(_finite(event)) + "\n")

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
            if not line.endswith(b"\n") or event.get("step", 0) > (step or 0):
                break
            if event.get("event") != "end":  # the run goes on
                kept.append(line)
        write_durably(self.path, b"".join(kept))


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
    """Progress for people: a bar in a terminal, otherwise one line per epoch on standard output.

    Args:
        active: whether this rank shows anything.
    """

    def __init__(self, active: bool) -> None:
        self._active = active
        self._bar: Any = None

    def say(self, text: str) -> None:
        """One line."""
        if not self._active:
            return
        if self._bar is not None:
            self._bar.write(text)
        else:
            print(text, flush=True)

    def start_epoch(self, epoch: int, epochs: int, steps: int, done: int) -> None:
        """Show a bar of `steps` steps, `done` of them done, where standard error is a terminal."""
        if self._active and sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=steps, initial=done, desc=f"epoch {epoch}/{epochs}", unit="step", leave=False)

    def step(self, loss: float) -> None:
        """One step more."""
        if self._bar is not None:
            self._bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
            self._bar.update()

    def end_epoch(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
