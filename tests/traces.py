"""Checks that a trace is what its readers expect, whoever made it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

TOLERANCE = 1e-6
"""microseconds: what adding a start and a duration may round by"""


def slices_by_rank(trace: dict[str, Any]) -> dict[int, list[dict[str, Any]]]:
    """The complete events, in the order of the file."""
    found: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for event in trace["traceEvents"]:
        if event["ph"] == "X":
            found[event["pid"]].append(event)
    return dict(found)


def assert_sound(trace: dict[str, Any], ranks: int, steps: Iterable[int]) -> None:
    """Every rank has a named row with every step; slices nest, never overlap, and come in the order of time."""
    assert set(trace) == {"displayTimeUnit", "otherData", "traceEvents"}
    rows = slices_by_rank(trace)
    assert sorted(rows) == list(range(ranks))
    names = {e["pid"]: e["args"]["name"] for e in trace["traceEvents"] if e["name"] == "process_name"}
    assert sorted(names) == list(range(ranks))
    assert all(name.startswith(f"rank {rank} on ") for rank, name in names.items())
    for rank, slices in rows.items():
        whole = [event["args"]["step"] for event in slices if event["cat"] == "step"]
        assert whole == list(steps), f"steps of rank {rank}"
        _assert_nested(slices)
        for step in steps:
            mine = {event["cat"] for event in slices if event["args"]["step"] == step}
            assert mine >= {"step", "input", "compute", "exchange", "optimiser step"}, f"rank {rank}, step {step}"
    assert all(event["ts"] >= 0 for event in trace["traceEvents"] if "ts" in event)


def _assert_nested(slices: list[dict[str, Any]]) -> None:
    open_until: list[float] = []
    before = 0.0
    for event in slices:
        start, end = event["ts"], event["ts"] + event["dur"]
        assert event["dur"] >= 0
        assert start >= before - TOLERANCE, "not in the order of time"
        before = start
        while open_until and open_until[-1] <= start + TOLERANCE:
            open_until.pop()
        assert not open_until or end <= open_until[-1] + TOLERANCE, f"{event['name']} overlaps the slice around it"
        open_until.append(end)


def ends_of(trace: dict[str, Any], kind: str) -> dict[int, dict[int, tuple[float, float]]]:
    """By step and rank: start and end of the slice of a kind that comes once a step."""
    found: dict[int, dict[int, tuple[float, float]]] = defaultdict(dict)
    for rank, slices in slices_by_rank(trace).items():
        for event in slices:
            if event["cat"] == kind:
                found[event["args"]["step"]][rank] = (event["ts"], event["ts"] + event["dur"])
    return dict(found)
