"""Forked processes for a list of tasks: the first failure ends all of them."""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import active_children, get_context
from typing import TypeVar

Result = TypeVar("Result")

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_libc = ctypes.CDLL(None)
_driver = 0
"""process that forks for the pool, while it does"""


def _leave_signals_to_the_driver() -> None:
    """In a process that the pool has forked: end at once when told to, or when the driver is gone.

    It would inherit the command's handlers, and its pool would wait for ever for a process that an exception out of a
    handler did not end. Ctrl-C goes to the driver, which ends the pool. A driver that is killed ends nobody: the kernel
    does it.
    """
    global _driver
    if _driver:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != _driver:  # it was killed before that was asked of the kernel
            os._exit(1)
        _driver = 0  # what a task starts is no process of the pool
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_IGN)


os.register_at_fork(after_in_child=_leave_signals_to_the_driver)


def run_tasks(tasks: Iterable[Callable[[], Result]], processes: int) -> Iterator[Result]:
    """Run tasks in forked processes and yield what they return, in the order in which they end.

    Args:
        tasks: to be pickled.
        processes: at a time.

    Raises:
        BrokenProcessPool: a process was killed.
        Exception: what a task raised; the others are ended.
    """
    global _driver
    _driver = os.getpid()
    try:
        with ProcessPoolExecutor(processes, get_context("fork")) as pool:
            try:
                for task in as_completed([pool.submit(task) for task in tasks]):
                    yield task.result()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                workers = active_children()
                for process in workers:
                    process.kill()  # SIGTERM may meet a handler that it has not laid down yet
                for process in workers:  # whoever tries again must not meet them
                    process.join()
                raise
    finally:
        _driver = 0
