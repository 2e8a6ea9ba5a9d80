"""How much of their input the tasks of a job have read: counted in memory that this process shares with its forks.

Only for runners whose tasks run in this process or its forks (inline and local); on others nothing is counted.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from typing import Any, BinaryIO

from mr.progress import Stage, ticking

MAPPING = 0.6
"""part of a job's time that its mappers take, about: on 124,395 real reviews 0.5 to 0.6"""
_ADD_BYTES = 1 << 18
_LINES, _MAPPED, _REDUCED, _TO_REDUCE = range(4)
# Tasks are forks, so that they find it here; None while no job is watched.
_counts: Any = None


@contextmanager
def watched(stage: Stage, total: int) -> Iterator[None]:
    """Tell the stage, from a thread, how far the job is that runs inside.

    Args:
        stage: of the job.
        total: bytes of the job's input.
    """
    global _counts
    _counts = get_context("fork").Array("q", 4)
    try:
        with ticking(lambda: _tell(stage, total)):
            yield
    finally:
        _counts = None


def metered(stream: BinaryIO, reduces: bool) -> BinaryIO | Iterator[bytes]:
    """The stream itself where nothing is watched; otherwise its lines, counted as they are read.

    Args:
        stream: the input of a task: a file, or a reader with its size in bytes.
        reduces: whether it is a reducer.
    """
    if _counts is None:
        return stream
    if reduces:
        _add(_TO_REDUCE, _size(stream))
    return _counted(stream, reduces)


def _size(stream: BinaryIO) -> int:
    # What is no plain file tells it.
    return int(getattr(stream, "size", None) or os.fstat(stream.fileno()).st_size)


def _counted(stream: BinaryIO, reduces: bool) -> Iterator[bytes]:
    lines = size = 0
    for line in stream:
        lines, size = lines + 1, size + len(line)
        if size > _ADD_BYTES:
            _note(lines, size, reduces)
            lines = size = 0
        yield line
    _note(lines, size, reduces)


def _note(lines: int, size: int, reduces: bool) -> None:
    if not reduces:
        _add(_LINES, lines)
    _add(_REDUCED if reduces else _MAPPED, size)


def _add(what: int, count: int) -> None:
    with _counts.get_lock():
        _counts[what] += count


def _tell(stage: Stage, total: int) -> None:
    # Without the lock: a task that was ended may have taken it along.
    lines, mapped, reduced, to_reduce = _counts.get_obj()
    if not (mapped or to_reduce):
        return  # not begun, or on a cluster, where nobody counts
    reducing = reduced / to_reduce if to_reduce else 0.0
    stage.tell(MAPPING * mapped / max(total, 1) + (1 - MAPPING) * reducing, lines, mapped)
