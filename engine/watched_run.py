"""What can be seen of a RUN folder from outside: how far its checkpoints are, and how its last run ended."""

from __future__ import annotations

import json
from pathlib import Path

TAIL_BYTES = 1 << 16
"""of metrics.jsonl; its last line lies in it"""


class WatchedRun:
    """A RUN folder that a job writes.

    Args:
        out: the folder; None where it is not known.
        elsewhere: rank 0 runs on another host, so that a folder that is not here may be there.
    """

    def __init__(self, out: str | None, elsewhere: bool = False) -> None:
        self._out, self._elsewhere = None if out is None else Path(out), elsewhere

    def step(self) -> int | None:
        """The step of the last checkpoint; -1: there is none; None: not known."""
        if self._out is None or (self._elsewhere and not self._out.exists()):
            return None
        numbers = (path.name[5:] for path in (self._out / "checkpoints").glob("step-*"))
        return max((int(number) for number in numbers if number.isdigit()), default=-1)

    def mark(self) -> object:
        """Changes when something is written to metrics.jsonl."""
        try:
            found = (self._out / "metrics.jsonl").stat() if self._out else None
        except OSError:
            return None
        return found and (found.st_ino, found.st_size, found.st_mtime_ns)

    def end(self) -> str | None:
        """Status of the "end" event with which metrics.jsonl ends; None where it ends with something else."""
        try:
            if self._out is None:
                return None
            with (self._out / "metrics.jsonl").open("rb") as stream:
                stream.seek(max(0, stream.seek(0, 2) - TAIL_BYTES))
                lines = stream.read().splitlines()
            event = json.loads(lines[-1]) if lines else None
        except (OSError, ValueError):
            return None
        return str(event.get("status")) if isinstance(event, dict) and event.get("event") == "end" else None
