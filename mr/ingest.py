"""Turns the input files into numbered line shards, the one form that the jobs read.

A shard's line is `file \\t line \\t record`: exact file and line numbers survive any runner, a big .gz is shared
between cores, and an element of a JSON array or a record of a CSV file is a record like any line. Records that a Hadoop
or Spark text reader would change (invalid UTF-8, a carriage return inside) travel as base64, marked by a `b` before the
line number; for what is known to be malformed already the reason travels, marked by an `x`.
"""

from __future__ import annotations

import binascii
import gzip
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import BinaryIO

from mr.arrays import MAX_RECORD_BYTES, ArrayReader
from mr.errors import UsageError
from mr.review import Fields, Malformed, start_of
from mr.stores import Input
from mr.tables import Line, read_table

_TABLES = (".csv", ".csv.gz")
EXTENSIONS = (".json", ".jsonl", ".json.gz", ".jsonl.gz", *_TABLES)
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
    files: Sequence[Input],
    folder: Path,
    fields: Fields,
    progress: Callable[[int, int, int], None] = lambda done, lines, size: None,
    shard_bytes: int = SHARD_BYTES,
) -> Ingested:
    """Write the shards of all files.

    Args:
        files: in the order that numbers them.
        folder: an existing, empty folder.
        fields: where CSV files have text and rating.
        progress: called now and then with the bytes of the files read, the records and the bytes written so far.

    Raises:
        UsageError: a file cannot be read, is no text, its gzip data is damaged, or a CSV header lacks a column.
    """
    for path in filter(_is_table, files):
        next(read_records(path, fields), None)  # a header without the columns is told before hours of work
    result = Ingested(lines=[0] * len(files))
    done = 0
    with _ShardWriter(folder, shard_bytes, result.shards) as writer:

        def tell(position: int) -> None:
            progress(done + position, sum(result.lines), writer.bytes)

        for number, path in enumerate(files):
            for lines, line, record in read_records(path, fields, tell):
                writer.write(encode_record(number, line, record))
                result.lines[number] = lines
            done += path.stat().st_size
            tell(0)
    result.bytes = writer.bytes
    return result


def read_records(
    path: Input, fields: Fields, tell: Callable[[int], None] = lambda position: None
) -> Iterator[tuple[int, int, bytes | Malformed]]:
    """Yield (records so far, line number, record) of one file; a reason for what is no record at all.

    Lines come without their line end; a byte order mark at the file's start is dropped; records of CSV files come as
    JSON objects of the wanted columns.

    Args:
        path: of the file.
        fields: where a CSV file has text and rating.
        tell: called with the place in the file, in bytes, as the reading goes on.

    Raises:
        UsageError: see ingest.
    """
    try:
        for count, (line, record) in enumerate(_records(path, _blocks(path, tell), fields), 1):
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


def encode_record(file: int, line: int, record: bytes | Malformed) -> bytes:
    """One shard line, with its line end."""
    if isinstance(record, Malformed):
        reason = json.dumps([record.kind, record.detail, record.start]).encode()
        return b"%d\tx%d\t%s\n" % (file, line, reason)
    if b"\r" in record or not _is_utf8(record):
        return b"%d\tb%d\t%s\n" % (file, line, binascii.b2a_base64(record, newline=False))
    return b"%d\t%d\t%s\n" % (file, line, record)


def decode_record(shard_line: bytes) -> tuple[int, int, bytes | Malformed]:
    """The reverse of encode_record: (file, line number, record)."""
    file, line, record = shard_line.split(b"\t", 2)
    if line.isdigit():
        return int(file), int(line), record
    if line.startswith(b"b"):
        return int(file), int(line[1:]), binascii.a2b_base64(record)
    return int(file), int(line[1:]), Malformed(*json.loads(record))


def _is_utf8(record: bytes) -> bool:
    if record.isascii():
        return True
    try:
        record.decode()
    except UnicodeDecodeError:
        return False
    return True


def _blocks(path: Input, tell: Callable[[int], None]) -> Iterator[bytes]:
    compressed = path.name.lower().endswith(".gz")
    with path.open("rb") as file, gzip.open(file) if compressed else nullcontext(file) as stream:
        block = stream.read(BLOCK_BYTES)
        if not compressed and block.startswith(b"\x1f\x8b"):
            raise UsageError(f"{path}: gzip data under a plain name; rename it to {path.name}.gz")
        if _is_binary(block):
            raise UsageError(f"{path}: not a text file in UTF-8; give reviews as JSON lines, as a JSON array or as CSV")
        yield block.removeprefix(_BOM)
        while block := stream.read(BLOCK_BYTES):
            tell(file.tell())
            yield block


def _is_table(path: Input) -> bool:
    return path.name.lower().endswith(_TABLES)


def _is_binary(block: bytes) -> bool:
    text = block[: 1 << 16].decode("utf-8", "replace")
    odd = text.count("\ufffd") + sum(text.count(chr(code)) for code in range(32) if code not in _TEXT_CONTROLS)
    return odd > _MAX_ODD_SHARE * len(text)


def _records(path: Input, blocks: Iterator[bytes], fields: Fields) -> Iterator[Line]:
    if _is_table(path):
        yield from read_table(path, _lines(blocks, 1), fields)
        return
    first = next(blocks, b"")
    blocks = chain([first], blocks)
    if not first.lstrip().startswith(b"["):
        yield from _lines(blocks, 1)
        return
    array = ArrayReader(blocks)
    yield from array
    if array.whole:
        yield from _lines_after(array, blocks)


def _lines_after(array: ArrayReader, blocks: Iterator[bytes]) -> Iterator[Line]:
    """What stands behind an array's end is read as lines, so that it is counted, blank ones left out."""
    for line, record in _lines(chain([array.rest], blocks), array.line):
        if isinstance(record, Malformed) or record.strip():
            yield line, record


def _lines(blocks: Iterable[bytes], number: int) -> Iterator[Line]:
    tail, too_long = b"", None
    for block in blocks:
        lines = (tail + block).split(b"\n")
        tail = lines.pop()
        for line in lines:
            yield number, too_long or line.removesuffix(b"\r")
            number, too_long = number + 1, None
        if len(tail) > MAX_RECORD_BYTES:
            too_long = too_long or Malformed(f"longer than {MAX_RECORD_BYTES >> 20} MiB", start=start_of(tail))
            tail = b""
    if tail or too_long:
        yield number, too_long or tail.removesuffix(b"\r")


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
