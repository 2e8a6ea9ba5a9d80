"""Cuts files of lines into the inputs of tasks: ranges of bytes, which are read where they stand."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

READ_BYTES = 1 << 18
Range = tuple[Path, int, int]
"""file, first byte, number of bytes"""


class Slice(io.RawIOBase):
    """Ranges of files, one after the other, as one stream.

    Args:
        ranges: in their order; each ends with a line end.
    """

    def __init__(self, ranges: Sequence[Range]) -> None:
        super().__init__()
        self._ranges = list(ranges)
        self._file: io.FileIO | None = None
        self._left = 0

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer, or as much of it as the range at hand has left; 0 at the end.

        Raises:
            OSError: a file cannot be read, or has become shorter.
        """
        while not self._left:
            if not self._ranges:
                return 0
            self._open(*self._ranges.pop(0))
        assert self._file is not None
        count = self._file.readinto(memoryview(buffer)[: self._left])
        if not count:
            raise OSError(f"{self._file.name} has become shorter while it was read")
        self._left -= count
        return int(count)

    def close(self) -> None:
        """Close the file at hand."""
        if self._file is not None:
            self._file.close()
        super().close()

    def _open(self, path: Path, start: int, size: int) -> None:
        if self._file is not None:
            self._file.close()
        self._file = path.open("rb", buffering=0)
        self._file.seek(start)
        self._left = size


class SliceReader(io.BufferedReader):
    """Buffered; `size` tells the bytes of all ranges."""

    size = 0


class Slices:
    """Ranges as the input of a task.

    Args:
        ranges: in their order; each ends with a line end.
    """

    def __init__(self, ranges: Sequence[Range]) -> None:
        self.ranges = ranges

    def open(self, _: object = None) -> SliceReader:
        """A stream of them."""
        reader = SliceReader(Slice(self.ranges), READ_BYTES)
        reader.size = sum(size for _, _, size in self.ranges)
        return reader


def cut(paths: Sequence[Path], pieces: int) -> list[list[Range]]:
    """Cut files of lines into pieces of about equal size, at the ends of lines.

    Args:
        paths: files, each empty or ended by a line end; one piece may reach over several of them.
        pieces: how many there are to be; there are fewer where there is too little to cut, and always one.

    Returns:
        The ranges of each piece.
    """
    sizes = [path.stat().st_size for path in paths]
    total = sum(sizes)
    found: list[list[Range]] = [[]]
    taken, edge = 0, 1
    for path, size in zip(paths, sizes, strict=True):
        start = 0
        while start < size:
            wanted = max(1, total * edge // pieces - taken)
            stop = size if edge == pieces or wanted >= size - start else _line_end(path, start + wanted)
            found[-1].append((path, start, stop - start))
            taken, start = taken + stop - start, stop
            if taken < total and taken >= total * edge // pieces:
                edge = max(edge + 1, taken * pieces // total + 1)
                found.append([])
    return found


def _line_end(path: Path, place: int) -> int:
    """The first place at or behind the given one at which a line ends."""
    with path.open("rb") as stream:
        stream.seek(place - 1)
        stream.readline()
        return stream.tell()
