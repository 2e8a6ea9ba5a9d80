"""From the slices of all ranks to one time line in Chrome's trace format, by one clock. Pure but for the writing.

The format: "Trace Event Format" (Google, 2016), which chrome://tracing and ui.perfetto.dev read. A rank is a process
with one row; slices nest in it. Times are microseconds of rank 0's clock since the first slice.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from engine.trace_clock import Alignment
from native.files import write_durably

WAIT = "wait"
"""the slice that is cut in two: until the last rank has come, and from then on the sum itself"""
WAIT_FOR_RANKS, ALLREDUCE = "wait for the others", "allreduce"


class Slice(NamedTuple):
    """Something that a rank did from one moment to another, by its own clock in nanoseconds."""

    name: str
    start: int
    end: int
    step: int
    details: dict[str, Any]


class Mark(NamedTuple):
    """Something that happened on rank 0 at a moment of its clock."""

    name: str
    at: int
    details: dict[str, Any]


class Row(NamedTuple):
    """A rank's part of the time line."""

    host: str
    device: str
    slices: Sequence[Slice]
    clock: Alignment
    """turns its times into rank 0's"""


def write_trace(path: Path, rows: Sequence[Row], marks: Sequence[Mark]) -> None:
    """Write the time line.

    Raises:
        OSError: it cannot be written.
    """
    write_durably(path, json.dumps(trace(rows, marks)).encode())


def trace(rows: Sequence[Row], marks: Sequence[Mark]) -> dict[str, Any]:
    """The time line as JSON values.

    Args:
        rows: one per rank, in their order.
        marks: of rank 0.
    """
    aligned = [[_by(row.clock, each) for each in row.slices] for row in rows]
    everyone_there = _last_arrivals(aligned)
    zero = min((each.start for slices in aligned for each in slices), default=0)
    events: list[dict[str, Any]] = []
    for rank, (row, slices) in enumerate(zip(rows, aligned, strict=True)):
        label = f"{row.device}, clock ± {row.clock.uncertainty / 1000:.1f} us"
        events += [
            _named("process_name", rank, name=f"rank {rank} on {row.host}"),
            _named("process_sort_index", rank, sort_index=rank),
            _named("process_labels", rank, labels=label),
            _named("thread_name", rank, name="training"),
        ]
        parts = [part for each in slices for part in _parts(each, everyone_there)]
        # A slice before those inside it: readers build the nesting from the order.
        parts.sort(key=lambda part: (part.start, -part.end))
        events += [_complete(rank, part, zero) for part in parts]
    for mark in marks:
        at = _microseconds(rows[0].clock(mark.at) - zero)
        events.append({"ph": "i", "s": "g", "pid": 0, "tid": 0, "ts": at, "name": mark.name, "args": mark.details})
    return {"displayTimeUnit": "ms", "otherData": _about(rows), "traceEvents": events}


def _by(clock: Alignment, each: Slice) -> Slice:
    return each._replace(start=clock(each.start), end=clock(each.end))


def _last_arrivals(aligned: Sequence[Sequence[Slice]]) -> dict[int, int]:
    """By step: when the last rank had sent what it had to send. The sum cannot end before."""
    found: dict[int, int] = {}
    for slices in aligned:
        for each in slices:
            if each.name == WAIT:
                found[each.step] = max(found.get(each.step, each.start), each.start)
    return found


def _parts(each: Slice, everyone_there: dict[int, int]) -> list[Slice]:
    if each.name != WAIT:
        return [each]
    border = min(max(each.start, everyone_there[each.step]), each.end)
    found = [each._replace(name=WAIT_FOR_RANKS, end=border), each._replace(name=ALLREDUCE, start=border)]
    return [part for part in found if part.end > part.start]


def _complete(rank: int, each: Slice, zero: int) -> dict[str, Any]:
    return {
        "ph": "X",
        "pid": rank,
        "tid": 0,
        "ts": _microseconds(each.start - zero),
        "dur": _microseconds(each.end - each.start),
        "name": f"step {each.step}" if each.name == "step" else each.name,
        "cat": each.name,
        "args": {"step": each.step, **each.details},
    }


def _named(what: str, rank: int, **arguments: Any) -> dict[str, Any]:
    return {"ph": "M", "pid": rank, "tid": 0, "name": what, "args": arguments}


def _about(rows: Sequence[Row]) -> dict[str, Any]:
    steps = [each.step for row in rows for each in row.slices]
    return {
        "steps": [min(steps, default=0), max(steps, default=0)],
        "ranks": len(rows),
        "hosts": [row.host for row in rows],
        "clock": "rank 0's; the others' by the shortest of several exchanges (Cristian 1989), before and after",
        "clock_uncertainty_us": [round(row.clock.uncertainty / 1000, 3) for row in rows],
        "gpu_synchronised": any(row.device.startswith("cuda") for row in rows),
    }


def _microseconds(nanoseconds: int) -> float:
    return nanoseconds / 1000
