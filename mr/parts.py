"""Records on their way from mappers to reducers: put by their keys' hashes, sorted by the reducer that reads them."""

from __future__ import annotations

import io
import os
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO
from zlib import crc32

from mr.children import start

WRITE_BYTES = 1 << 18


def part_of(output: str, part: int) -> Path:
    """The file of one part of a mapper's output."""
    return Path(f"{output}-{part:05d}")


class Parts:
    """A mapper's output as files, one per reducer: equal keys go to the same. Use it as a context manager.

    Args:
        paths: of the files.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._files = [path.open("wb", buffering=WRITE_BYTES) for path in paths]

    def __enter__(self) -> Parts:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files:
            file.close()

    def writelines(self, lines: Iterable[bytes]) -> None:
        """Write records with their line ends."""
        writes, count = [file.write for file in self._files], len(self._files)
        for line in lines:
            writes[crc32(line[: line.index(b"\t")]) % count](line)


class SortedReader(io.BufferedReader):
    """What sort hands out; `size` tells the bytes to come."""

    size = 0


class Sorted:
    """One part of all mappers' outputs, sorted.

    Args:
        paths: its files.
        sort: the command and its options.
    """

    def __init__(self, paths: Sequence[Path], sort: Sequence[str]) -> None:
        self._paths, self._sort = paths, sort

    @contextmanager
    def open(self, errors: BinaryIO) -> Iterator[SortedReader]:
        """The sorted lines; the files are removed at the end.

        Args:
            errors: where sort tells what went wrong.

        Raises:
            OSError: sort failed.
        """
        # Whole lines: that groups equal keys too, and is faster than sorting by the key.
        command = [*self._sort, "--parallel=1", *map(str, self._paths)]
        folder = str(self._paths[0].parent)
        environment = {**os.environ, "LC_ALL": "C", "TMPDIR": folder}
        with start(command, stdout=subprocess.PIPE, stderr=errors, bufsize=0, env=environment) as process:
            assert isinstance(process.stdout, io.FileIO), "it is not buffered"
            reader = SortedReader(process.stdout, WRITE_BYTES)
            reader.size = sum(path.stat().st_size for path in self._paths)
            try:
                yield reader
            except BaseException:
                process.kill()
                raise
        if process.returncode:
            raise OSError(f"{self._sort[0]} ended with status {process.returncode}")
        for path in self._paths:
            path.unlink()
