"""SIGTERM and Ctrl-C end a run with one line: they become an exception, but never in the middle of a fork.

Python swallows an exception in what it calls around a fork, and prints a traceback for it: the signal would be lost.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_AGAIN_SECONDS = 2.0
"""a signal that comes so long after the first one is meant: what cleans up hangs. `timeout` sends two at once"""
_holds = 0
_waiting: Stopped | None = None


class Stopped(KeyboardInterrupt):
    """A signal asked for the end; as a KeyboardInterrupt it passes by whoever catches errors.

    Args:
        message: of one line.
        status: the exit status that tells of the signal.
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


@contextmanager
def stoppable() -> Iterator[None]:
    """While what is inside runs, SIGTERM and SIGINT raise Stopped in the main thread; call it there.

    The first one counts. One that comes while the run cleans up is ignored, and after two seconds ends it at once; the
    kernel then ends its processes.
    """
    global _waiting
    _waiting = None
    first = 0.0

    def stop(number: int, _: FrameType | None) -> None:
        global _waiting
        nonlocal first
        now, status = time.monotonic(), 128 + number
        if first and now - first > _AGAIN_SECONDS:
            os._exit(status)
        if first:
            return
        first = now
        _waiting = Stopped(f"stopped by {signal.Signals(number).name}", status)
        if not _holds:
            _raise()

    before = {number: signal.signal(number, stop) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def held() -> Iterator[None]:
    """What is inside, a fork, is not interrupted: Stopped is raised at its end, where a signal came."""
    global _holds
    if threading.current_thread() is not threading.main_thread():
        yield  # Python raises nothing elsewhere
        return
    _holds += 1
    try:
        yield
    finally:
        _holds -= 1
        if _waiting and not _holds:
            _raise()


def _raise() -> None:
    global _waiting
    stopped, _waiting = _waiting, None
    assert stopped is not None, "a signal came"
    raise stopped
