"""The first look at the input: what each file holds, by its digest, and where files of lines can be cut.

    files --look--> a digest per file; pieces, each with its first line's number and a digest --ingest--> shards

A piece that has another digest when it is read again has changed in between.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Literal

import xxhash

from mr.errors import UsageError
from mr.reading import BLOCK_BYTES, is_compressed, is_lines
from mr.stores import Input

PIECE_BYTES = 16 << 20
"""of a file of lines, about"""
GROUP_BYTES = 48 << 20
"""that one task reads at most, about; less than a shard, which line numbers and base64 make larger"""
_LEAST_GROUP_BYTES = 1 << 20
"""less is done by one process before others have been forked"""
_GROUPS_A_PROCESS = 4
"""so that none is left alone with much of the work"""
_COMPRESSION = 4
"""bytes that a byte of gzip data becomes, about"""


@dataclass(frozen=True)
class Piece:
    """A range of a file of lines, or a whole file."""

    file: int
    """its number"""
    path: Input
    size: int
    """bytes"""
    start: int = 0
    """its first byte in the file"""
    line: int = 1
    """number of its first line"""
    ends: bool = True
    """whether it ends where the file ends: what was added to the file since belongs to it"""
    digest: str | None = None
    """XXH3 of its bytes when they were looked at; None: they were not"""


def look(
    files: Sequence[Path], progress: Callable[[int], None] = lambda done: None
) -> tuple[list[list[str]], list[Piece]]:
    """Read all files once.

    Args:
        files: in the order that numbers them.
        progress: called now and then with the bytes read so far.

    Returns:
        Base name and XXH3 of the bytes of each file, and the pieces of all files in their order.

    Raises:
        UsageError: a file cannot be read.
    """
    digests: list[list[str]] = []
    pieces: list[Piece] = []
    done = 0

    def tell(before: int, place: int) -> None:
        progress(before + place)

    for number, path in enumerate(files):
        try:
            with path.open("rb", buffering=0) as stream:
                digest, found = _look(number, path, stream, partial(tell, done))
        except OSError as error:
            raise UsageError(f"{path}: cannot be read ({error.strerror}); check the path and its permissions") from None
        digests.append([path.name, digest])
        pieces += found
        done += sum(piece.size for piece in found)
    return digests, pieces


def _look(number: int, path: Path, stream: Any, tell: Callable[[int], None]) -> tuple[str, list[Piece]]:
    pieces: list[Piece] = []
    whole, piece = xxhash.xxh3_128(), xxhash.xxh3_128()
    start, place, first_line, line = 0, 0, 1, 1
    block = stream.read(BLOCK_BYTES)
    cuttable = is_lines(path.name, block)
    while block:
        whole.update(block)
        if cuttable:
            end = place + len(block)
            cut = block.rfind(b"\n") + 1 if end - start >= PIECE_BYTES else 0
            if cut:
                piece.update(block[:cut])
                line += block.count(b"\n", 0, cut)
                cut_at = place + cut
                pieces.append(Piece(number, path, cut_at - start, start, first_line, False, piece.hexdigest()))
                start, first_line, piece = cut_at, line, xxhash.xxh3_128()
            piece.update(block[cut:])
            line += block.count(b"\n", cut)
        place += len(block)
        tell(place)
        block = stream.read(BLOCK_BYTES)
    digest = piece.hexdigest() if pieces else whole.hexdigest()
    pieces.append(Piece(number, path, place - start, start, first_line, True, digest))
    return whole.hexdigest(), pieces


def whole_files(files: Sequence[Input]) -> list[Piece]:
    """A piece per file, not looked at.

    Args:
        files: in the order that numbers them.
    """
    return [Piece(number, path, path.stat().st_size) for number, path in enumerate(files)]


def grouped(pieces: Sequence[Piece], processes: int) -> list[list[Piece]]:
    """Pieces that follow each other in groups, each for one task: neither many small files nor a large one make the
    tasks too small, too large or too few. Pure.

    Args:
        pieces: in their order.
        processes: that share the groups.
    """
    sizes = [expected_bytes(piece) for piece in pieces]
    wanted = min(GROUP_BYTES, max(_LEAST_GROUP_BYTES, sum(sizes) // (_GROUPS_A_PROCESS * processes)))
    groups: list[list[Piece]] = []
    room = 0
    for piece, size in zip(pieces, sizes, strict=True):
        if room <= 0:
            groups.append([])
            room = wanted
        groups[-1].append(piece)
        room -= size
    return groups


def expected_bytes(piece: Piece) -> int:
    """Of its lines, about."""
    return piece.size * (_COMPRESSION if is_compressed(piece.path.name) else 1)


class PieceSource:
    """A piece to be read, whose digest is known afterwards; a mr.reading.Source."""

    def __init__(self, piece: Piece) -> None:
        self._piece = piece
        self._stream: _Digested | None = None

    @property
    def name(self) -> str:
        """Base name of its file."""
        return self._piece.path.name

    def open(self, mode: Literal["rb"]) -> BinaryIO:
        """Read it, from its beginning."""
        file = self._piece.path.open(mode)
        if self._piece.start:
            file.seek(self._piece.start)
        self._stream = _Digested(file, None if self._piece.ends else self._piece.size)
        return io.BufferedReader(self._stream, BLOCK_BYTES)

    def __str__(self) -> str:
        return str(self._piece.path)

    def digest(self) -> str:
        """Of all its bytes."""
        assert self._stream is not None, "it was not read"
        assert self._stream.ended, "it was not read to its end"
        return self._stream.hash.hexdigest()


class _Digested(io.RawIOBase):
    """A stream from where it stands on, so many bytes of it or all, with their digest."""

    def __init__(self, stream: BinaryIO, size: int | None) -> None:
        super().__init__()
        self._stream, self._left = stream, size
        self.hash, self.ended, self._place = xxhash.xxh3_128(), False, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        wanted = len(buffer) if self._left is None else min(self._left, len(buffer))
        block = self._stream.read(wanted)
        buffer[: len(block)] = block
        self.hash.update(block)
        self.ended = self.ended or not block
        self._place += len(block)
        if self._left is not None:
            self._left -= len(block)
        return len(block)

    def tell(self) -> int:
        return self._place

    def close(self) -> None:
        self._stream.close()
        super().close()
