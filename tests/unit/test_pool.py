"""Forked processes for tasks: all results come, and whatever goes wrong ends all of them and is told."""

from __future__ import annotations

import os
import signal
import struct
import time
from functools import partial
from multiprocessing import Pipe

import psutil
import pytest

from mr.pool import ProcessKilled, _context, _received, run_here_or_there, run_tasks


def square(number: int) -> int:
    return number * number


def who(_: int) -> int:
    time.sleep(0.05)
    return os.getpid()


def fail(kind: type[BaseException], *arguments: object) -> None:
    raise kind(*arguments)


def end(how: int) -> None:
    os.kill(os.getpid(), how)


class Strange(Exception):
    """One that cannot be made anew from what pickle keeps of it."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} {two}")


@pytest.mark.parametrize("processes", [1, 2, 7])
@pytest.mark.parametrize("count", [0, 1, 2, 50])
def test_every_task_is_done_once(processes, count):
    for run in (run_tasks, run_here_or_there):
        assert sorted(run((partial(square, number) for number in range(count)), processes)) == [
            number**2 for number in range(count)
        ]
    assert not psutil.Process().children()


def test_results_may_be_large():
    found = run_tasks([partial(bytes, 30 << 20)] * 3, 2)
    assert [len(result) for result in found] == [30 << 20] * 3


def test_there_are_no_more_processes_than_tasks_and_only_where_they_help():
    assert len(set(run_tasks([partial(who, number) for number in range(3)], 100))) == 3
    assert len(set(run_tasks([partial(who, number) for number in range(9)], 2))) == 2
    assert set(run_here_or_there([partial(who, 1)], 100)) == {os.getpid()}
    assert set(run_here_or_there([partial(who, number) for number in range(3)], 1)) == {os.getpid()}
    assert os.getpid() not in set(run_here_or_there([partial(who, number) for number in range(3)], 2))


@pytest.mark.parametrize(
    ("error", "raised", "told"),
    [
        ((OSError, 28, "No space left", "/x"), OSError, "No space left"),
        ((ValueError, "why"), ValueError, "why"),
        ((Strange, 1, 2), RuntimeError, "Strange"),
        ((SystemExit, 3), SystemExit, "3"),
    ],
)
def test_the_first_error_ends_all_and_is_raised_as_it_is(error, raised, told):
    tasks = [partial(time.sleep, 60), partial(fail, *error), *[partial(time.sleep, 60)] * 3]
    with pytest.raises(raised, match=told) as caught:
        list(run_tasks(tasks, 3))
    assert not psutil.Process().children()
    if raised is OSError:
        assert caught.value.filename == "/x"
        assert "in fail" in caught.value.__notes__[0]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_process_that_was_killed_ends_all_and_is_told(how):
    with pytest.raises(ProcessKilled, match=how.name):
        list(run_tasks([partial(time.sleep, 60), partial(end, how)], 2))
    assert not psutil.Process().children()


def test_one_that_is_killed_while_it_answers_is_told_too():
    ours, theirs = Pipe()
    os.write(theirs.fileno(), struct.pack("!i", 1000) + b"begun")
    theirs.close()
    process = _context.Process(target=end, args=(signal.SIGKILL,))
    process.start()
    with pytest.raises(ProcessKilled, match="SIGKILL"):
        _received(ours, process)


def test_a_task_survives_ctrl_c_and_ends_when_told_to():
    (found,) = run_tasks([handlers], 1)
    assert found == (signal.SIG_DFL, signal.SIG_IGN)


def handlers() -> tuple[object, object]:
    return signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)


def test_whoever_stops_to_listen_leaves_no_process():
    results = run_tasks([partial(square, 2), *[partial(time.sleep, 60)] * 3], 3)
    assert next(results) == 4
    results.close()
    assert not psutil.Process().children()
