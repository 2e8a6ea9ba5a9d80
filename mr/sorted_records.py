"""Encoded records in sorted files: how many there are up to a key, and all between two keys, in order.

A key begins with its place, `<split><bucket>`, and goes on with a digest. Digests are evenly spread, so that their
first PREFIX digits cut a place into slices of about the same size, small enough to be sorted in memory.
"""

from __future__ import annotations

import mmap
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from mr.errors import RunError

PLACE = 3
"""characters: a digit for the split, two for the bucket"""
PREFIX = 3
"""hexadecimal digits"""
SLICES = 16**PREFIX
SLICE_ROWS = 32_768
"""records that are sorted at a time, about"""


def count_slices(path: Path) -> dict[bytes, np.ndarray]:
    """Records per place and slice of one file.

    Args:
        path: the file.

    Returns:
        Counts [SLICES] per place.

    Raises:
        RunError: its keys do not ascend.
    """
    counts: Counter[bytes] = Counter()
    previous = b""
    with path.open("rb", buffering=1 << 20) as stream:
        for line in stream:
            key = line[: line.index(b"\t")]
            if key <= previous:
                raise RunError(
                    f"{path.name}: the record {key.decode()} comes after {previous.decode()}, in a file that should be "
                    "sorted and hold none twice; nothing was written: this is an error in the program, please report it"
                )
            previous = key
            counts[key[: PLACE + PREFIX]] += 1
    found: dict[bytes, np.ndarray] = {}
    for start, count in counts.items():
        found.setdefault(start[:PLACE], np.zeros(SLICES, np.int64))[int(start[PLACE:], 16)] = count
    return found


class SortedRecords:
    """Records of several sorted files, as if of one.

    Args:
        paths: the files.
        counts: of count_slices, over all files.
    """

    def __init__(self, paths: Sequence[Path], counts: dict[bytes, np.ndarray]) -> None:
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
                raise RunError(f"{place.decode()}: {done} records, {first + number} expected; nothing was written")
            # As many slices as make some thousands of records, one at least.
            stop = max(start + 1, int(np.searchsorted(ends, done + SLICE_ROWS, side="right")))
            lines = self._between(_key(place, start), _key(place, stop))
            yield lines[max(first - done, 0) : first + number - done]
            start, done = stop, done + len(lines)

    def _between(self, low: bytes, high: bytes) -> list[bytes]:
        lines: list[bytes] = []
        for path in self._paths:
            lines += _lines_between(path, low, high)
        lines.sort()  # each file's are sorted already: this merges them
        for before, line in pairwise(lines):
            if line.startswith(before[: before.index(b"\t") + 1]):
                name = line[: line.index(b"\t")].decode()
                raise RunError(
                    f"the record {name} came twice, from two attempts of a task perhaps; nothing was written: this is "
                    "an error in the program, please report it"
                )
        return lines


def _key(place: bytes, number: int) -> bytes:
    """The key before the first of a slice; after the last slice comes what is greater than any digit."""
    return place + (b"%0*x" % (PREFIX, number) if number < SLICES else b"g")


def _lines_between(path: Path, low: bytes, high: bytes) -> list[bytes]:
    """Lines of a sorted file from a key on and before another, without their line ends."""
    with path.open("rb") as stream:
        size = path.stat().st_size
        if not size:
            return []
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
            found = data[_offset(data, low, size) : _offset(data, high, size)]
            return found.removesuffix(b"\n").split(b"\n") if found else []


def _offset(data: mmap.mmap, key: bytes, size: int) -> int:
    """Where the first line begins that is not before the key."""
    low, high = 0, size  # a line begins at low; the one sought begins in low .. high
    while low < high:
        middle = (low + high) // 2
        begin = data.rfind(b"\n", low, middle) + 1 or low
        if data[begin : begin + len(key)] < key:
            end = data.find(b"\n", begin)
            low = size if end < 0 else end + 1
        else:
            high = begin
    return low
