"""The shares of an earlier run, from its metrics.jsonl, so that it can be repeated with them bit for bit.

Shares follow timings, which never come twice; what was chosen, and from which step on, stands in "shares" events, and
how each rank cut its rows and how gradients travelled in "work" events.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.errors import UsageError
from engine.shares import Table


@dataclass(frozen=True)
class Journal:
    """What a run did with its batches.

    Args:
        path: where it was read from.
        changes: number of the first step, and the shares per bucket from it on, in rising order.
        micro_steps: per rank, most padded timesteps of a micro-batch.
        exchange: "dense" or "rows".
    """

    path: str
    changes: tuple[tuple[int, Table], ...]
    micro_steps: tuple[int, ...]
    exchange: str

    def table(self, step: int) -> Table:
        """Shares of a step, counted from 1 since training began."""
        place = bisect_right(self.changes, step, key=lambda change: change[0])
        return self.changes[max(0, place - 1)][1]

    def schedule(self, done: int) -> list[Table]:
        """Shares of the coming steps, the first one after `done` steps; the last entry stays in force."""
        last = max(done + 1, self.changes[-1][0])
        return [self.table(step) for step in range(done + 1, last + 1)]


def read_journal(path: Path, bounds: Sequence[int], batch_size: int, ranks: int) -> Journal:
    """Read the events of a run.

    Args:
        path: metrics.jsonl.
        bounds: padded length of each bucket.
        batch_size: rows of a global batch.
        ranks: of this run.

    Raises:
        UsageError: not readable, of another number of ranks or batch size, or without shares.
    """
    changes: list[tuple[int, Table]] = []
    work: dict[str, Any] = {}
    for number, event in enumerate(_events(path), start=1):
        kind = event.get("event")
        try:
            if kind == "shares" and event["changed"]:
                _add(changes, event, bounds, batch_size, ranks)
            elif kind == "work":
                now = {"micro_steps": tuple(map(int, event["micro_steps"])), "exchange": str(event["exchange"])}
                if work and now != work:
                    raise ValueError(
                        "the run cut its rows or sent its gradients otherwise from here on, so that it cannot be "
                        "repeated bit for bit"
                    )
                work = now
        except (KeyError, TypeError, ValueError) as error:
            raise UsageError(f"--shares-from {path}: line {number}: {error}; name the metrics.jsonl of a run") from None
    if not changes or not work:
        raise UsageError(f"--shares-from {path}: tells of no shares; name the metrics.jsonl of a run that has trained")
    return Journal(str(path), tuple(changes), **work)


def _events(path: Path) -> list[dict[str, Any]]:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")[:-1]  # a torn last line is nothing
        events = [json.loads(line) for line in lines]
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"--shares-from {path}: not readable ({error}); name the metrics.jsonl of a run") from None
    return [event for event in events if isinstance(event, dict)]


def _add(
    changes: list[tuple[int, Table]], event: dict[str, Any], bounds: Sequence[int], batch_size: int, ranks: int
) -> None:
    """Take in an event; what an earlier one has announced for a later step never came."""
    shares, first = tuple(map(int, event["shares"])), int(event["first_step"])
    if len(shares) != ranks:
        raise ValueError(f"shares of {len(shares)} ranks, this run has {ranks}")
    if sum(shares) != batch_size or min(shares) < 0:
        raise ValueError(f"shares {list(shares)} do not make this run's batch of {batch_size} rows")
    bucket = event["bucket"]
    if bucket is not None and bucket not in bounds:
        raise ValueError(f"shares of a length {bucket}, this dataset has the lengths {list(bounds)}")
    while changes and changes[-1][0] > first:
        changes.pop()
    before = changes[-1][1] if changes else (shares,) * len(bounds)
    table = tuple(shares if bucket in (None, bound) else old for bound, old in zip(bounds, before, strict=True))
    if changes and changes[-1][0] == first:
        changes.pop()
    changes.append((first, table))
