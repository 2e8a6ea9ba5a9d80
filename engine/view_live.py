"""Keeps a view on the terminal: a thread draws it a few times a second, and writes the run's lines above it."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, TextIO

from engine.view_terminal import Terminal

REFRESH_SECONDS = 0.5
SHARE = 250
"""a picture is drawn at most so often that it takes one part in so many of the time"""
DRAIN_SECONDS = 1.0
"""for lines that are still to be written; a terminal that was stopped (Ctrl-S) must not hold up training"""


class LiveView:
    """A view that lives from its making until `close`.

    Args:
        terminal: where.
        draw: makes the lines, given columns and rows.
        asked_to_stop: the run is about to end: the view goes, so that nothing is left of it if the end is sudden.
    """

    def __init__(
        self,
        terminal: Terminal,
        draw: Callable[[int, int], Sequence[str]],
        asked_to_stop: Callable[[], object] = lambda: False,
    ) -> None:
        self._terminal, self._draw, self._asked = terminal, draw, asked_to_stop
        self._messages: deque[str] = deque()
        self._wake, self._closing, self._idle = threading.Event(), threading.Event(), threading.Event()
        self._lock = threading.Lock()
        self._view: Sequence[str] = ()
        self._due = 0.0
        self._shown = False
        self._stderr: TextIO = sys.stderr
        self._guard = _AboveView(self, sys.stderr)
        sys.stderr = self._guard
        self._thread = threading.Thread(target=self._run, name="engine-view", daemon=True)
        self._thread.start()

    def say(self, text: str) -> bool:
        """One line above the view; False where it is for the caller to print, as standard output leads elsewhere."""
        if self._closing.is_set() or not self._terminal.shows_output:
            return False
        self.write(text)
        return True

    def write(self, text: str) -> None:
        """One line above the view, on the terminal."""
        self._messages.append(text)
        self._idle.clear()
        self._wake.set()

    @property
    def closed(self) -> bool:
        """Whether it is gone."""
        return self._closing.is_set()

    def drain(self) -> None:
        """Return when all lines are written, or after a moment."""
        self._idle.wait(DRAIN_SECONDS)

    def close(self) -> None:
        """Write what is to be written, take the view away and leave the terminal as it was."""
        with self._lock:
            if self._closing.is_set():
                return
            self._guard.finish()
            if sys.stderr is self._guard:
                sys.stderr = self._stderr
            self._closing.set()
        self._wake.set()
        self._thread.join(2 * DRAIN_SECONDS)

    def _run(self) -> None:
        # A terminal that stops background jobs that write (stty tostop) would stop training.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTTOU})
        pause = 0.0
        try:
            while not self._closing.is_set():
                self._wake.wait(pause)
                self._wake.clear()
                pause = self._refresh()
            self._put(())
        except OSError:
            pass  # the terminal is gone
        finally:
            # Whatever ended it, lines go where they went before.
            self._closing.set()
            if sys.stderr is self._guard:
                sys.stderr = self._stderr
            while self._messages:  # said by another thread just now
                print(self._messages.popleft(), file=self._stderr, flush=True)
            self._idle.set()
            self._terminal.close()

    def _refresh(self) -> float:
        """Write what waits, with a new picture where one is due; how long to wait for the next."""
        if self._asked():
            self._put(())
            return REFRESH_SECONDS
        if time.monotonic() >= self._due:
            began = time.thread_time()
            self._view = self._draw(*self._terminal.size())
            self._due = time.monotonic() + max(REFRESH_SECONDS, SHARE * (time.thread_time() - began))
        self._put(self._view)
        return max(0.0, self._due - time.monotonic())

    def _put(self, view: Sequence[str]) -> None:
        """Write the lines that wait, and the view where nobody else uses the terminal."""
        lines = []
        while self._messages:
            lines.append(self._messages.popleft())
        if self._terminal.in_front():
            if view or lines or self._shown:
                self._terminal.paint(lines, view)
            self._shown = bool(view)
        elif lines:
            self._terminal.write(lines)
            self._shown = False
        if not self._messages:
            self._idle.set()


class _AboveView:
    """Stands in for sys.stderr: whole lines go above the view.

    Args:
        view: takes them.
        stream: what it stands in for.
    """

    def __init__(self, view: LiveView, stream: TextIO) -> None:
        self._view, self._stream, self._begun = view, stream, ""
        self._lock = threading.Lock()

    def write(self, text: str) -> int:
        """Add to the present line."""
        if self._view.closed:
            return self._stream.write(text)
        with self._lock:
            *lines, self._begun = (self._begun + text).split("\n")
        for line in lines:
            self._view.write(line)
        return len(text)

    def flush(self) -> None:
        """Return when whole lines are on the terminal."""
        if self._view.closed:
            self._stream.flush()
        else:
            self._view.drain()

    def finish(self) -> None:
        """The line that was begun stands for itself."""
        if self._begun:
            self.write("\n")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
