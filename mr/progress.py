"""Progress on standard error: a line a stage; in between a bar on a terminal, elsewhere a plain line now and then."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

RENEW_SECONDS = 0.2
"""between two states of the bar"""
LINE_SECONDS = 30.0
"""between two lines where there is no terminal"""
_LAYOUT = "{desc} {percentage:3.0f}%|{bar}|"

# Stages are told of by a thread while the local runner forks: a fork in the middle of a write would leave its copy of
# the stream locked for ever.
_writing = threading.Lock()
os.register_at_fork(before=_writing.acquire, after_in_parent=_writing.release, after_in_child=_writing.release)


class Progress:
    """Numbers the stages and times them.

    Args:
        stages: how many there will be.
        stream: where to write.
    """

    def __init__(self, stages: int, stream: TextIO | None = None) -> None:
        self._stages, self._stage = stages, 0
        self._stream = stream or sys.stderr

    def note(self, text: str) -> None:
        """Write a line between stages."""
        with _writing:
            self._stream.write(f"{text}\n")
            self._stream.flush()

    def skipped(self, title: str) -> None:
        """A stage need not be done."""
        self._stage += 1
        self.note(f"[{self._stage}/{self._stages}] {title}: done before, input and settings are the same")

    @contextmanager
    def stage(self, title: str, unit: str = "lines") -> Iterator[Stage]:
        """One stage, from its beginning to its end.

        Args:
            title: what is done.
            unit: of what is counted.
        """
        self._stage += 1
        stage = Stage(f"[{self._stage}/{self._stages}] {title}", unit, self._stream)
        try:
            yield stage
        except BaseException:
            stage.close(whole=False)
            raise
        stage.close(whole=True)


class Stage:
    """The running stage. Used by Progress.stage."""

    def __init__(self, head: str, unit: str, stream: TextIO) -> None:
        self._head, self._unit, self._stream = head, unit, stream
        self._done = 0.0
        self._count = self._bytes = 0
        self._began = self._told = time.monotonic()
        self._measured = self._began
        self._bar: Any = _bar(head, stream) if stream.isatty() else None
        if self._bar is None:
            self._write(f"{head} ...\n")

    def tell(self, done: float, count: int, size: int = 0) -> None:
        """What has been done so far; may be called often.

        Args:
            done: part of the stage's work, 0..1.
            count: lines or rows so far.
            size: bytes so far; 0 where nobody counts them.
        """
        now = time.monotonic()
        self._done = done = min(max(done, self._done), 1.0)  # an estimate may go back, a bar does not
        if (count, size) != (self._count, self._bytes):
            self._count, self._bytes, self._measured = count, size, now
        if now - self._told < (LINE_SECONDS if self._bar is None else RENEW_SECONDS):
            return
        self._told = now
        left = f", {_duration((now - self._began) * (1 - done) / done)} left" if done > 0 else ""
        if self._bar is None:
            self._write(f"{self._head}: {done:.0%}, {self._figures()}{left}\n")
            return
        with _writing:
            self._bar.n = done
            self._bar.bar_format = f"{_LAYOUT} {self._figures()}{left}"
            self._bar.refresh()

    def note(self, text: str) -> None:
        """Write a line of its own."""
        if self._bar is not None:
            with _writing:
                self._bar.clear()
        self._write(f"{self._head}: {text}\n")

    def close(self, whole: bool) -> None:
        """The stage has ended, and if it was whole its line is written."""
        if self._bar is not None:
            with _writing:
                self._bar.close()
        if whole:
            figures = f"{self._figures()}, " if self._count else ""
            self._write(f"{self._head}: {figures}{_duration(time.monotonic() - self._began)}\n")

    def _figures(self) -> str:
        """Count and rate, as of the moment when they last changed: what follows the reading does not dilute it."""
        seconds = max(self._measured - self._began, 1e-3)
        rate = f"{self._bytes / 1e6 / seconds:,.1f} MB/s" if self._bytes else f"{self._count / seconds:,.0f} a second"
        return f"{self._count:,} {self._unit}, {rate}"

    def _write(self, text: str) -> None:
        with _writing:
            self._stream.write(text)
            self._stream.flush()


@contextmanager
def ticking(look: Callable[[], None]) -> Iterator[None]:
    """Call something from a thread, now and then while what is inside runs, and once at its end."""
    ended = threading.Event()

    def tick() -> None:
        while not ended.wait(RENEW_SECONDS):
            look()

    thread = threading.Thread(target=tick, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        look()


def _bar(head: str, stream: TextIO) -> Any:
    from tqdm import tqdm

    class Bar(tqdm):
        monitor_interval = 0  # no thread of its own

    return Bar(total=1.0, desc=head, bar_format=_LAYOUT, leave=False, dynamic_ncols=True, file=stream)


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
