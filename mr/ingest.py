"""Turns the input files into numbered line shards, the one form that the jobs read.

A shard's line is `file \\t line \\t record`: exact file and line numbers survive any runner, a big .gz is shared
between cores, and an element of a JSON array is a record like any line. Records that a Hadoop or Spark text reader
would change (invalid UTF-8, a carriage return inside) travel as base64, marked by a `b` before the line number.
"""

from __future__ import annotations

import binascii
import gzip
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import BinaryIO

from mr.arrays import MAX_RECORD_BYTES, ArrayReader
from mr.errors import UsageError

EXTENSIONS = (".json", ".jsonl", ".json.gz", ".jsonl.gz")
BLOCK_BYTES = 1 << 20
SHARD_BYTES = 64 << 20
_BOM = b"\xef\xbb\xbf"
_TEXT_CONTROLS = b"\t\n\r\x0b\x0c"
_MAX_ODD_SHARE = 0.3
"""of the characters in the first block; UTF-16, archives and images have more, broken text has less"""


@dataclass
class Ingested:
    """What ingest made."""

    lines: list[int]
    """records per input file"""
    bytes: int = 0
    """bytes written to the shards"""
    shards: list[Path] = field(default_factory=list)


def ingest(
    files: Sequence[Path],
    folder: Path,
    progress: Callable[[int, int], None] = lambda lines, size: None,
    shard_bytes: int = SHARD_BYTES,
) -> Ingested:
    """Write the shards of all files.

    Args:
        files: in the order that numbers them.
        folder: an existing, empty folder.
        progress: called now and then with the records and bytes so far.

    Raises:
        UsageError: a file cannot be read, is no text, or its gzip data is damaged.
    """
    result = Ingested(lines=[0] * len(files))
    with _ShardWriter(folder, shard_bytes, result.shards) as writer:
        for number, path in enumerate(files):
            for lines, line, record in read_records(path):
                writer.write(encode_record(number, line, record))
                result.lines[number] = lines
                if not lines & 0x3FFF:
                    progress(sum(result.lines), writer.bytes)
    result.bytes = writer.bytes
    return result


def read_records(path: Path) -> Iterator[tuple[int, int, bytes | None]]:
    """Yield (records so far, line number, record) of one file; the record is None where it is absurdly long.

    Lines come without their line end; a byte order mark at the file's start is dropped.

    Raises:
        UsageError: see ingest.
    """
    try:
        for count, (line, record) in enumerate(_records(_blocks(path)), 1):
            yield count, line, record
    except EOFError:
        raise UsageError(
            f"{path}: the gzip data ends early: the file is truncated; copy or download it again"
        ) from None
    except gzip.BadGzipFile as error:
        raise UsageError(
            f"{path}: not gzip data or damaged ({error}); copy it again, or name a plain file .json"
        ) from None
    except zlib.error as error:
        raise UsageError(f"{path}: damaged gzip data ({error}); copy or download it again") from None
    except OSError as error:
        raise UsageError(
            f"{path}: cannot be read ({error.strerror or error}); check the path and its permissions"
        ) from None


def encode_record(file: int, line: int, record: bytes | None) -> bytes:
    """One shard line, with its line end."""
    if record is None:
        return b"%d\tx%d\t\n" % (file, line)
    if b"\r" in record or not _is_utf8(record):
        return b"%d\tb%d\t%s\n" % (file, line, binascii.b2a_base64(record, newline=False))
    return b"%d\t%d\t%s\n" % (file, line, record)


def decode_record(shard_line: bytes) -> tuple[int, int, bytes | None]:
    """The reverse of encode_record: (file, line number, record)."""
    file, line, record = shard_line.split(b"\t", 2)
    if line.isdigit():
        return int(file), int(line), record
    return int(file), int(line[1:]), binascii.a2b_base64(record) if line.startswith(b"b") else None


def _is_utf8(record: bytes) -> bool:
    if record.isascii():
        return True
    try:
        record.decode()
    except UnicodeDecodeError:
        return False
    return True


def _blocks(path: Path) -> Iterator[bytes]:
    compressed = path.name.lower().endswith(".gz")
    with gzip.open(path, "rb") if compressed else path.open("rb") as stream:
        block = stream.read(BLOCK_BYTES)
        if not compressed and block.startswith(b"\x1f\x8b"):
            raise UsageError(f"{path}: gzip data under a plain name; rename it to {path.name}.gz")
        if _is_binary(block):
            raise UsageError(f"{path}: not a text file in UTF-8; give reviews as JSON lines or as a JSON array")
        yield block.removeprefix(_BOM)
        while block := stream.read(BLOCK_BYTES):
            yield block


def _is_binary(block: bytes) -> bool:
    text = block[: 1 << 16].decode("utf-8", "replace")
    odd = text.count("\ufffd") + sum(text.count(chr(code)) for code in range(32) if code not in _TEXT_CONTROLS)
    return odd > _MAX_ODD_SHARE * len(text)


def _records(blocks: Iterator[bytes]) -> Iterator[tuple[int, bytes | None]]:
    first = next(blocks, b"")
    blocks = chain([first], blocks)
    if not first.lstrip().startswith(b"["):
        yield from _lines(blocks, 1)
        return
    array = ArrayReader(blocks)
    yield from array
    if array.whole:
        yield from _lines_after(array, blocks)


def _lines_after(array: ArrayReader, blocks: Iterator[bytes]) -> Iterator[tuple[int, bytes | None]]:
    """What stands behind an array's end is read as lines, so that it is counted, blank ones left out."""
    for line, record in _lines(chain([array.rest], blocks), array.line):
        if record is None or record.strip():
            yield line, record


def _lines(blocks: Iterable[bytes], number: int) -> Iterator[tuple[int, bytes | None]]:
    tail, too_long = b"", False
    for block in blocks:
        lines = (tail + block).split(b"\n")
        tail = lines.pop()
        for line in lines:
            yield number, None if too_long else line.removesuffix(b"\r")
            number, too_long = number + 1, False
        if len(tail) > MAX_RECORD_BYTES:
            tail, too_long = b"...", True
    if tail or too_long:
        yield number, None if too_long else tail.removesuffix(b"\r")


class _ShardWriter:
    """Writes lines to shard-00000, shard-00001, ... and begins a new one when one is full."""

    def __init__(self, folder: Path, shard_bytes: int, shards: list[Path]) -> None:
        self.bytes = 0
        self._folder, self._shard_bytes, self._shards = folder, shard_bytes, shards
        self._full_at = 0
        self._stream: BinaryIO | None = None

    def __enter__(self) -> _ShardWriter:
        return self

    def write(self, line: bytes) -> None:
        if self.bytes >= self._full_at:
            self.__exit__()
            self._shards.append(self._folder / f"shard-{len(self._shards):05d}")
            self._stream = self._shards[-1].open("wb", buffering=BLOCK_BYTES)
            self._full_at = self.bytes + self._shard_bytes
        assert self._stream is not None
        self._stream.write(line)
        self.bytes += len(line)

    def __exit__(self, *_: object) -> None:
        if self._stream:
            self._stream.close()
