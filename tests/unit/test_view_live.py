"""A view on a terminal, as a terminal emulator shows it: drawn in place, torn by nothing, gone without a trace."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import pytest

from engine import view_live
from engine.view_live import LiveView
from engine.view_terminal import Terminal, find_terminal
from tests.terminals import PATIENCE, Screen

HARMLESS = {"K", "J", "A", "m"}
"""erasing, moving up, colours: nothing that outlives the process"""


@pytest.fixture
def screen() -> Iterator[Screen]:
    made = Screen()
    yield made
    made.close()


@pytest.fixture
def start(screen, monkeypatch) -> Iterator[Callable[..., LiveView]]:
    """Makes views that count their pictures."""
    monkeypatch.setattr(view_live, "REFRESH_SECONDS", 0.02)
    before, made, pictures = sys.stderr, [], [0]

    def draw(columns: int, rows: int) -> Sequence[str]:
        pictures[0] += 1
        return [f"picture {pictures[0]:06d} on {columns} columns"[: columns - 1], "x" * (columns - 1)]

    def make(
        shows_output: bool = True, drawing: Callable[[int, int], Sequence[str]] = draw, **more: object
    ) -> LiveView:
        terminal = Terminal(os.dup(screen.fd), os.getpid(), shows_output)
        made.append(LiveView(terminal, drawing, **more))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for view in made:
        view.close()
    assert sys.stderr is before


def pictures(screen: Screen) -> list[str]:
    return [line for line in screen.all_lines() if line.startswith("picture")]


def test_pictures_replace_each_other_and_leave_nothing(screen, start):
    view = start()
    screen.wait_for(lambda: screen.shows("picture 000005"), "the fifth picture")
    assert len(pictures(screen)) == 1
    assert screen.lines()[:3] == ["", pictures(screen)[0], "x" * 79]
    assert (screen.screen.cursor.x, screen.screen.cursor.y, screen.screen.cursor.hidden) == (0, 0, False)
    view.close()
    screen.settle()
    assert not any(screen.all_lines())
    assert screen.escapes() <= HARMLESS


def test_lines_go_above_the_view_and_stay(screen, start):
    view = start()
    screen.wait_for(lambda: screen.shows("picture"), "the view")
    said = [f"line {number}" for number in range(40)]
    for line in said:
        assert view.say(line)
    print("a warning\n  of two lines", file=sys.stderr)
    print("a line without an end", end="", file=sys.stderr)
    sys.stderr.flush()
    view.close()
    screen.settle()
    assert [line for line in screen.all_lines() if line] == [
        *said,
        "a warning",
        "  of two lines",
        "a line without an end",
    ]
    assert len(pictures(screen)) == 0


def test_long_lines_above_the_view_stay_whole(screen, start):
    view = start()
    view.say("y" * 200)
    screen.wait_for(lambda: screen.shows("picture"), "the view")
    view.close()
    screen.settle()
    assert "".join(screen.all_lines()) == "y" * 200


def test_what_others_write_is_kept(screen, start):
    view = start()
    screen.wait_for(lambda: screen.shows("picture"), "the view")
    for number in range(10):
        before = screen.raw.count(b"picture")
        os.write(screen.fd, f"rank 1 says {number}\r\n".encode())
        screen.wait_for(lambda: screen.raw.count(b"picture") > before + 2, "two pictures more")  # noqa: B023
    view.close()
    screen.settle()
    assert [line for line in screen.all_lines() if line] == [f"rank 1 says {number}" for number in range(10)]


def test_a_terminal_may_be_resized_at_any_time(screen, start):
    view = start()
    view.say("said before")
    for columns, rows in ((120, 40), (50, 10), (30, 5), (100, 30)):
        screen.resize(columns, rows)
        screen.wait_for(lambda: screen.shows(f"on {columns} columns"[:10]), "a picture of the new size")  # noqa: B023
        before = screen.raw.count(b"picture")
        screen.wait_for(lambda: screen.raw.count(b"picture") > before + 2, "two pictures more")  # noqa: B023
        assert len(pictures(screen)) == 1
    view.close()
    screen.settle()
    assert not pictures(screen)


def test_a_window_that_is_closed_stops_nothing(screen, start):
    view = start()
    screen.wait_for(lambda: screen.shows("picture"), "the view")
    screen.close()
    limit = time.monotonic() + PATIENCE
    while not view.closed:
        assert time.monotonic() < limit
        time.sleep(0.01)
    assert not view.say("for the caller to print")
    assert not isinstance(sys.stderr, view_live._AboveView)


def test_output_that_goes_elsewhere_is_left_to_the_caller(start):
    assert not start(shows_output=False).say("into a file")


def test_a_job_in_the_background_draws_nothing(screen, start, monkeypatch):
    monkeypatch.setattr(Terminal, "in_front", lambda self: False)
    view = start()
    view.say("a line all the same")
    screen.wait_for(lambda: screen.shows("a line all the same"), "the line")
    assert "picture" not in screen.raw.decode()
    monkeypatch.setattr(Terminal, "in_front", lambda self: True)
    screen.wait_for(lambda: screen.shows("picture"), "the view, in front again")


def test_the_view_goes_when_the_run_is_asked_to_stop(screen, start):
    asked = threading.Event()
    start(asked_to_stop=asked.is_set)
    screen.wait_for(lambda: screen.shows("picture"), "the view")
    asked.set()
    screen.wait_for(lambda: not screen.shows("picture"), "an empty screen")


def test_an_error_in_drawing_leaves_the_terminal_and_stderr_as_they_were(screen, start, capfd, monkeypatch):
    monkeypatch.setattr(threading, "excepthook", lambda arguments: None)
    view = start(drawing=lambda columns, rows: [][1])
    limit = time.monotonic() + PATIENCE
    while not view.closed:
        assert time.monotonic() < limit
        time.sleep(0.01)
    print("still told", file=sys.stderr)
    assert "still told" in capfd.readouterr().err


@pytest.mark.parametrize("name", ["dumb", "unknown", None])
def test_a_terminal_that_cannot_move_its_cursor_gets_no_view(name, monkeypatch):
    if name is None:
        monkeypatch.delenv("TERM", raising=False)
    else:
        monkeypatch.setenv("TERM", name)
    assert find_terminal() is None
