"""Slices of several ranks become one time line: clocks aligned, waiting told from summing."""

from __future__ import annotations

import json

import pytest

from engine.trace_clock import Alignment, Offset
from engine.trace_file import Mark, Row, Slice, trace, write_trace
from tests.traces import assert_sound, ends_of

MS = 1_000_000
SAME = Alignment(Offset(), Offset())


def step(number: int, start: int, arrives: int, end: int) -> list[Slice]:
    """Slices of a step in milliseconds, in the order in which they end."""
    at = [Slice("input", start, start + 1, number, {}), Slice("compute", start + 1, arrives, number, {"rows": 3})]
    at += [Slice("wait", arrives, end, number, {}), Slice("exchange", arrives, end, number, {})]
    at += [Slice("optimiser step", end, end + 1, number, {}), Slice("step", start, end + 1, number, {})]
    return [each._replace(start=each.start * MS, end=each.end * MS) for each in at]


def test_waiting_is_told_from_summing_by_the_last_rank():
    rows = [Row("a", "cpu", step(1, 0, 10, 30), SAME), Row("b", "cpu", step(1, 0, 25, 30), SAME)]
    found = trace(rows, [])
    assert_sound(found, 2, [1])
    assert ends_of(found, "wait for the others") == {1: {0: (10_000.0, 25_000.0)}}
    assert ends_of(found, "allreduce") == {1: {0: (25_000.0, 30_000.0), 1: (25_000.0, 30_000.0)}}


def test_a_border_outside_a_slice_stays_inside_it():
    """Clocks are uncertain: by them a rank may seem to be done before the last has come."""
    rows = [Row("a", "cpu", step(1, 0, 10, 20), SAME), Row("b", "cpu", step(1, 0, 25, 30), SAME)]
    found = trace(rows, [])
    assert_sound(found, 2, [1])
    assert ends_of(found, "wait for the others") == {1: {0: (10_000.0, 20_000.0)}}


def test_clocks_that_are_apart_and_drift_are_aligned():
    truth = [0, 7, 500, 1000]
    rate, ahead = 1 + 1e-3, 40 * MS
    theirs = [round(at * MS * rate) + ahead for at in truth]
    offsets = [Offset(their - at * MS, 100.0, their) for their, at in zip(theirs, truth, strict=True)]
    align = Alignment(offsets[0], offsets[-1])
    assert [align(their) for their in theirs] == pytest.approx([at * MS for at in truth], abs=200)
    assert align.uncertainty == 100.0
    slices = [Slice("step", their, their + 1, 1, {}) for their in theirs]
    found = trace([Row("a", "cpu", [Slice("step", 0, 1, 1, {})], SAME), Row("b", "cpu", slices, align)], [])
    starts = [event["ts"] for event in found["traceEvents"] if event["ph"] == "X" and event["pid"] == 1]
    assert starts == pytest.approx([at * 1000 for at in truth], abs=0.2)
    assert found["otherData"]["clock_uncertainty_us"] == [0.0, 0.1]


def test_decisions_are_marks_of_rank_0_and_the_file_is_json(tmp_path):
    rows = [Row("a", "cuda:0", step(1, 5, 10, 30), SAME)]
    write_trace(tmp_path / "trace.json", rows, [Mark("shares changed", 12 * MS, {"shares": [3, 1]})])
    found = json.loads((tmp_path / "trace.json").read_text())
    [mark] = [event for event in found["traceEvents"] if event["ph"] == "i"]
    assert (mark["ts"], mark["name"], mark["args"]) == (7000.0, "shares changed", {"shares": [3, 1]})
    assert found["otherData"]["gpu_synchronised"] is True


def test_a_trace_of_nothing_is_a_trace():
    assert trace([Row("a", "cpu", [], SAME)], [])["otherData"]["steps"] == [0, 0]
