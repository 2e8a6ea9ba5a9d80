"""What the ranks report of themselves, and what rank 0 makes of it."""

from __future__ import annotations

import os
import time

import pytest

from engine import watch as module
from engine.watch import WAIT_LIMIT, WAIT_MORE, Board, Phase, Report, Stall, Watch, resident_bytes

DURING = 10.0


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until it is set."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_a_report_survives_its_journey():
    report = Report(7, 1.5, 0.25, 0.125, Phase.WAIT, 3.5, 1 << 30, 1 << 36)
    assert Report.from_bytes(report.to_bytes()) == report
    for wrong in (b"", report.to_bytes()[:-1], report.to_bytes().replace(b"\x03", b"\xff")):
        with pytest.raises(ValueError, match="not a"):
            Report.from_bytes(wrong)


def test_a_watch_adds_up_and_tells_the_phase(clock):
    watch = Watch()
    watch.timed(8, 100, 0.5, 0.1, 0.2)
    watch.timed(16, 100, 0.25, 0.0, 0.3)
    watch.enter(Phase.INPUT)
    clock[0] += 4
    report = watch.report()
    assert (report.steps, report.compute, report.input, report.wait) == (2, 0.75, 0.1, 0.5)
    assert (report.phase, report.phase_seconds) == (Phase.INPUT, 4.0)
    assert report.memory == pytest.approx(resident_bytes(), rel=0.5)
    assert report.memory > 1 << 20


def test_the_memory_is_what_the_kernel_says():
    with open(f"/proc/{os.getpid()}/status") as stream:
        kib = next(int(line.split()[1]) for line in stream if line.startswith("VmRSS"))
    assert resident_bytes() == pytest.approx(kib * 1024, rel=0.2)


@pytest.mark.parametrize(
    ("phase", "root", "limit", "words"),
    [
        (Phase.INPUT, False, 100, "is at the input of a step"),
        (Phase.COMPUTE, True, 100, "is at the compute of a step"),
        (Phase.WAIT, True, 100 * WAIT_LIMIT + WAIT_MORE, "waits for the other ranks"),
        (Phase.WAIT, False, 100 * WAIT_LIMIT + 2 * WAIT_MORE, "waits for the other ranks"),
        (Phase.SAVE, True, 100, "is saving"),
        (Phase.SAVE, False, 100 * WAIT_LIMIT + 2 * WAIT_MORE, "waits for the other ranks"),
        (Phase.VALIDATE, True, None, ""),
        (Phase.STARTING, False, None, ""),
    ],
)
def test_what_lasts_too_long_is_told(phase, root, limit, words):
    watch = Watch()
    stall, unlimited = Stall(watch, 100, root), Stall(watch, 0, root)
    watch.enter(phase)
    for each in (stall, unlimited):
        assert each.after(1e6) is None  # before it was seen to begin
    assert unlimited.after(1e9) is None
    if limit is None:
        assert stall.after(1e9) is None
        return
    assert stall.after(limit - 1) is None
    watch.enter(phase)  # the next step
    assert stall.after(limit - 1) is None
    assert stall.after(limit - 1) is None
    told = stall.after(1.5)
    assert told == f"{words} for {limit + 0.5:.0f} s (--step-timeout 100; give more where that is right)"


def hear(board: Board, rank: int, **fields: object) -> None:
    board.hear(rank, Report(**fields).to_bytes())  # type: ignore[arg-type]


def test_parts_are_of_the_time_between_the_reports(clock):
    board = Board(Watch(), ["a", "b"])
    hear(board, 1, steps=10, compute=5.0, input=1.0, wait=1.0)
    clock[0] += 1
    hear(board, 1, steps=20, compute=5.6, input=1.05, wait=1.35, phase=Phase.COMPUTE, memory=5)
    figures = board.figures([3, 1])[1]
    assert (figures.compute, figures.input, figures.wait) == pytest.approx((0.6, 0.05, 0.35))
    assert figures.step_compute == pytest.approx(0.06)
    assert (figures.host, figures.share, figures.memory, figures.state) == ("b", 1, 5, "computing")
    assert not figures.alarming


@pytest.mark.parametrize(
    ("then", "later", "state", "alarming"),
    [
        ({"steps": 5, "compute": 1.0, "wait": 2.0}, 0.1, "waiting", False),
        ({"steps": 5, "compute": 1.0, "input": 0.2}, 0.1, "starved", True),
        ({"steps": 5, "compute": 1.0}, 7.0, "silent 7 s", True),
        ({"steps": 0, "phase": Phase.INPUT, "phase_seconds": 6.0}, 0.1, "input 6 s", True),
        ({"steps": 0, "phase": Phase.COMPUTE, "phase_seconds": 6.0}, 0.1, "computing 6 s", False),
        ({"steps": 5, "compute": 1.0, "phase": Phase.VALIDATE}, 0.1, "validating", False),
        ({"steps": 0}, 0.1, "starting", False),
    ],
)
def test_the_state_says_what_a_rank_is_at(clock, then, later, state, alarming):
    board = Board(Watch(), ["a", "b"])
    hear(board, 1)
    clock[0] += 1
    hear(board, 1, **then)
    clock[0] += later
    figures = board.figures([1, 1])[1]
    assert (figures.state, figures.alarming) == (state, alarming)


def test_ranks_that_never_reported_and_noise_are_told_as_no_figures():
    board = Board(Watch(), ["a", "b"])
    board.hear(1, b"noise")
    board.hear(7, Report().to_bytes())
    own, other = board.figures([2, 2])
    assert (other.state, other.known) == ("no figures", False)
    assert own.memory > 0


def test_old_reports_are_forgotten(clock):
    board = Board(Watch(), ["a", "b"])
    for number in range(100):
        hear(board, 1, steps=number, compute=float(number) if number < 80 else 80.0, wait=float(max(0, number - 80)))
        clock[0] += 1
    assert board.figures([1, 1])[1].compute == 0
    assert module.REPORTS < 20
