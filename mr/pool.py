"""Forked processes for a list of tasks: the first failure ends all of them.

Not concurrent.futures: its thread leaves a traceback when it is ended in the middle of its work, and may wait for ever
for the rest of a result whose process was killed while sending it. Here each process has a pipe of its own, and no
thread is needed.
"""

from __future__ import annotations

import os
import pickle
import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from traceback import format_exc
from typing import Any, TypeVar

from mr.children import end_with_parent
from mr.stopping import held

Result = TypeVar("Result")
_context = get_context("fork")


class ProcessKilled(Exception):
    """A process ended before its task did; the message says by what."""


def run_tasks(tasks: Iterable[Callable[[], Result]], processes: int) -> Iterator[Result]:
    """Run tasks in forked processes and yield what they return, in the order in which they end.

    Args:
        tasks: to be pickled; they begin in their order.
        processes: at a time; never more than tasks.

    Raises:
        ProcessKilled: a process was killed.
        Exception: what a task raised; the others are ended.
    """
    waiting = list(tasks)[::-1]
    workers: dict[Connection, BaseProcess] = {}
    try:
        for _ in range(min(processes, len(waiting))):
            with held():  # a process that nobody knows of would not be ended
                connection, process = _forked()
                workers[connection] = process
            _send(connection, waiting.pop())
        while workers:
            for ready in wait(list(workers)):
                assert isinstance(ready, Connection), "it waits for nothing else"
                found = _received(ready, workers[ready])
                if waiting:
                    _send(ready, waiting.pop())
                else:
                    _send(ready, None)
                    workers.pop(ready).join()
                    ready.close()
                yield found
    finally:
        for process in workers.values():
            process.kill()  # SIGTERM may meet a handler that it has not laid down yet
        for connection, process in workers.items():  # whoever tries again must not meet them
            process.join()
            connection.close()


def run_here_or_there(tasks: Iterable[Callable[[], Result]], processes: int) -> Iterator[Result]:
    """As run_tasks, but this process does what one alone would do.

    Args:
        tasks: see run_tasks.
        processes: see run_tasks.
    """
    waiting = list(tasks)
    if processes > 1 and len(waiting) > 1:
        return run_tasks(waiting, processes)
    return (task() for task in waiting)


def _forked() -> tuple[Connection, BaseProcess]:
    ours, theirs = _context.Pipe()
    process = _context.Process(target=_work, args=(os.getpid(), theirs), daemon=True)
    process.start()
    theirs.close()  # so that nothing comes any more when the process has ended
    return ours, process


def _send(connection: Connection, task: Callable[[], Any] | None) -> None:
    with suppress(BrokenPipeError, ConnectionResetError):  # it was killed, which is told when its answer is waited for
        connection.send(task)


def _received(connection: Connection, process: BaseProcess) -> Any:
    try:
        succeeded, found = connection.recv()
    except (EOFError, OSError):  # before an answer, or in the middle of one
        process.join()
        code = process.exitcode or 0
        ended = f"by {signal.Signals(-code).name}" if code < 0 else f"with status {code}"
        raise ProcessKilled(f"a process ended {ended} in the middle of its work") from None
    if not succeeded:
        raise found
    return found


def _work(driver: int, connection: Connection) -> None:
    # The handlers are the command's. Ctrl-C goes to the driver, which ends its processes; a driver that is killed ends
    # nobody: the kernel does it.
    end_with_parent(driver, signal.SIGKILL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while (task := connection.recv()) is not None:
        try:
            answer = pickle.dumps((True, task()), pickle.HIGHEST_PROTOCOL)
        except BaseException as error:
            answer = _failure(error)
        connection.send_bytes(answer)


def _failure(error: BaseException) -> bytes:
    error.add_note(format_exc())  # told where nobody meets the error
    try:
        answer = pickle.dumps((False, error))
        pickle.loads(answer)  # an exception may not be one that can be made anew
        return answer
    except Exception:
        return pickle.dumps((False, RuntimeError(repr(error))))
