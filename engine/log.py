"""What a run tells programs: metrics.jsonl. Rank 0 only."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from native.files import write_durably

LINES_AT_ONCE = 100
"""lines that are tried again together: a full disk must not cost more with every line that waits"""


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
