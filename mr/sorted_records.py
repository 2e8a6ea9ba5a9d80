"""Encoded records in files of any number and order, read in the order of their keys.

    a file --arranged--> sorted (itself, or a sorted copy) --Counts--> records per place and slice of digests
    all files --SortedRecords.rows--> the records of a place from any row on, some thousands at a time

A record is a line `<place><digest>\\t<star><ids in base64>`, its place `<split><bucket>`. Digests are evenly spread, so
that their first digits cut a place into slices of about the same size, small enough to be sorted in memory; where a
slice begins in a file is found by bisection, so that any process can begin anywhere.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator, Sequence
from itertools import pairwise
from operator import eq
from pathlib import Path

import numpy as np
import xxhash

from mr.errors import RunError
from mr.sorting import sort_lines

PLACE = 3
"""characters: a digit for the split, two for the bucket"""
KEY = PLACE + 32
"""characters of a key; a tab follows"""
STAR, IDS = KEY + 1, KEY + 2
"""where a record's star and its ids begin"""
PREFIX = 3
"""hexadecimal digits that name a slice"""
SLICES = 16**PREFIX
SLICE_ROWS = 16_384
"""records that are sorted at a time, about"""
_BLOCK_BYTES = 2 << 20
_HEX = np.full(256, 255, np.uint8)
_HEX[np.frombuffer(b"0123456789abcdef", np.uint8)] = np.arange(16)
_DECIMAL, _HEXADECIMAL = 10 ** np.arange(PLACE)[::-1], 16 ** np.arange(PREFIX)[::-1]
_OURS = "; no dataset was written: this is an error in the program, please report it"

Counts = dict[bytes, np.ndarray]
"""records [SLICES] per place"""


def arranged(path: Path, work: Path) -> tuple[Path, Counts]:
    """Count the records of a file; where they are not sorted, those of a sorted copy.

    Args:
        path: the file.
        work: folder for the copy; one that an earlier call made of the same bytes is used again.

    Returns:
        The file to read, and its records per place and slice.

    Raises:
        RunError: it holds something else, or a key twice; or it cannot be sorted.
        OSError: it cannot be read.
    """
    counts = _counted(path)
    if counts is None:
        path = _sorted_copy(path, work)
        counts = _counted(path)
    if counts is None:
        raise RunError(f"{path}: not sorted, though GNU sort wrote it; no dataset was written: check the disk")
    return path, counts


def _counted(path: Path) -> Counts | None:
    """Records per place and slice; None: the keys do not ascend."""
    total = np.zeros(1000 * SLICES, np.int32)
    last = np.zeros(1, f"S{KEY}")
    for block in _whole_lines(path):
        text = np.frombuffer(block, np.uint8)
        ends = np.flatnonzero(text == ord("\n"))
        starts = np.concatenate([[0], ends[:-1] + 1])
        if (ends - starts < IDS).any():
            raise RunError(f"{path}: {_shown(block, starts[ends - starts < IDS][0])} is no record{_OURS}")
        heads = np.lib.stride_tricks.sliding_window_view(text, KEY + 1)[starts]
        digits = _HEX[heads[:, : PLACE + PREFIX]]
        wrong = (heads[:, KEY] != ord("\t")) | (digits > 15).any(axis=1) | (digits[:, :PLACE] > 9).any(axis=1)
        if wrong.any():
            raise RunError(f"{path}: {_shown(block, starts[wrong][0])} is no record{_OURS}")
        keys = np.concatenate([last, np.ascontiguousarray(heads[:, :KEY]).view(f"S{KEY}").ravel()])
        if (keys[1:] <= keys[:-1]).any():
            if (keys[1:] < keys[:-1]).any():
                return None
            raise _twice(keys[1:][keys[1:] == keys[:-1]][0])
        last = keys[-1:]
        place, slices = digits[:, :PLACE] @ _DECIMAL, digits[:, PLACE:] @ _HEXADECIMAL
        found, numbers = _runs(place * SLICES + slices)
        total[found] += numbers
    places = np.flatnonzero(total.reshape(-1, SLICES).any(axis=1))
    return {b"%0*d" % (PLACE, place): total.reshape(-1, SLICES)[place].astype(np.int64) for place in places}


def _runs(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Different values of an ascending array, and how often each stands there."""
    starts = np.flatnonzero(np.concatenate([[True], values[1:] != values[:-1]]))
    return values[starts], np.diff(starts, append=len(values))


def _whole_lines(path: Path) -> Iterator[bytes]:
    """Blocks of a file, each of whole lines; the last line is ended where it is not."""
    rest = b""
    with path.open("rb", buffering=0) as stream:
        while block := stream.read(_BLOCK_BYTES):
            lines = rest + block
            cut = lines.rfind(b"\n") + 1
            rest = lines[cut:]
            if cut:
                yield lines[:cut]
    if rest:
        yield rest + b"\n"


def _shown(block: bytes, start: int) -> str:
    return repr(block[start : block.index(b"\n", start)][: KEY + 5].decode("ascii", "backslashreplace"))


def _twice(key: bytes) -> RunError:
    return RunError(f"the record {key.decode()} came twice, from two attempts of a task perhaps{_OURS}")


def _sorted_copy(path: Path, work: Path) -> Path:
    """Sort a file by the bytes of its lines, with bounded memory."""
    digest = xxhash.xxh3_128()
    with path.open("rb", buffering=0) as stream:
        while block := stream.read(_BLOCK_BYTES):
            digest.update(block)
    copy = work / f"{digest.hexdigest()}.sorted"
    if copy.exists():
        return copy
    work.mkdir(parents=True, exist_ok=True)
    unfinished = work / f".{copy.name}.{os.getpid()}"
    try:
        sort_lines([path], unfinished, work)
        unfinished.replace(copy)
    finally:
        unfinished.unlink(missing_ok=True)
    return copy


class SortedRecords:
    """Records of several sorted files, as if of one.

    Args:
        paths: the files.
        counts: of all of them together.
    """

    def __init__(self, paths: Sequence[Path], counts: Counts) -> None:
        self._paths, self._counts = paths, counts

    def rows(self, place: bytes, first: int, number: int) -> Iterator[list[bytes]]:
        """Yield lines first .. first + number of a place in the order of their keys, some thousands at a time.

        Raises:
            RunError: two records have the same key, or there are too few.
        """
        if not number:
            return
        ends = np.cumsum(self._counts.get(place, np.zeros(SLICES, np.int64)))
        start = int(np.searchsorted(ends, first, side="right"))
        done = int(ends[start - 1]) if start else 0
        while done < first + number:
            if start >= SLICES:
                raise RunError(f"{place.decode()}: {done} records, {first + number} expected{_OURS}")
            # As many slices as make some thousands of records, one at least.
            stop = max(start + 1, int(np.searchsorted(ends, done + SLICE_ROWS, side="right")))
            lines = self._between(_slice_key(place, start), _slice_key(place, stop))
            if len(lines) != ends[stop - 1] - done:
                raise RunError(f"{place.decode()}: the records changed while they were read; no dataset was written")
            if lines:
                yield lines[max(first - done, 0) : first + number - done]
            start, done = stop, done + len(lines)

    def check_once(self, place: bytes) -> None:
        """Raise RunError if a key of a place came twice."""
        for _ in self.rows(place, 0, int(self._counts[place].sum())):
            pass

    def _between(self, low: bytes, high: bytes) -> list[bytes]:
        lines: list[bytes] = []
        for path in self._paths:
            lines += _lines_between(path, low, high)
        if len(self._paths) > 1:
            lines.sort()  # each file's are sorted already: this merges them
            keys = [line[:KEY] for line in lines]
            if any(map(eq, keys, keys[1:])):
                raise _twice(next(key for key, after in pairwise(keys) if key == after))
        return lines


def _slice_key(place: bytes, number: int) -> bytes:
    """The key before the first of a slice; after the last slice comes what is greater than any digit."""
    return place + (b"%0*x" % (PREFIX, number) if number < SLICES else b"g")


def _lines_between(path: Path, low: bytes, high: bytes) -> list[bytes]:
    """Lines of a sorted file from a key on and before another, without their line ends."""
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        start = _offset(data, low, 0)
        return data[start : _offset(data, high, start)].splitlines()


def _offset(data: mmap.mmap, key: bytes, low: int) -> int:
    """Where the first line begins that is not before the key; a line begins at low, and it does not begin before."""
    high = len(data)
    while low < high:
        middle = (low + high) // 2
        begin = data.rfind(b"\n", low, middle) + 1 or low
        if data[begin : begin + len(key)] < key:
            end = data.find(b"\n", begin)
            low = high if end < 0 else end + 1
        else:
            high = begin
    return low
