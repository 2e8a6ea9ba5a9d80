"""Reads review files of any form, record by record, each with the number of its line."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from itertools import chain
from typing import BinaryIO, Literal, Protocol

from mr.arrays import MAX_RECORD_BYTES, ArrayReader
from mr.errors import UsageError
from mr.review import Fields, Malformed, start_of
from mr.tables import Line, read_table

_TABLES = (".csv", ".csv.gz")
EXTENSIONS = (".json", ".jsonl", ".json.gz", ".jsonl.gz", *_TABLES)
BLOCK_BYTES = 1 << 20
_BOM = b"\xef\xbb\xbf"
_TEXT_CONTROLS = b"\t\n\r\x0b\x0c"
_MAX_ODD_SHARE = 0.3
"""of the characters in the first block; UTF-16, archives and images have more, broken text has less"""


class Source(Protocol):
    """A file, or a part of one; str() is what messages call it."""

    @property
    def name(self) -> str:
        """Its base name."""

    def open(self, mode: Literal["rb"]) -> BinaryIO:
        """Read it from its beginning."""


def read_records(
    path: Source, fields: Fields, tell: Callable[[int], None] = lambda position: None, line: int = 1
) -> Iterator[tuple[int, int, bytes | Malformed]]:
    """Yield (records so far, line number, record); a reason for what is no record at all.

    Lines come without their line end; a byte order mark at the file's start is dropped; records of CSV files come as
    JSON objects of the wanted columns.

    Args:
        path: of the file, or a part of a file of lines.
        fields: where a CSV file has text and rating.
        tell: called with the place in the file, in bytes, as the reading goes on.
        line: number of the first line; 1: of a file's beginning.

    Raises:
        UsageError: the file cannot be read, is no text, its gzip data is damaged, or a CSV header lacks a column.
    """
    try:
        for count, (number, record) in enumerate(_records(path, _blocks(path, tell, line), fields, line), 1):
            yield count, number, record
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


def is_table(name: str) -> bool:
    """Whether a file of that name is CSV."""
    return name.lower().endswith(_TABLES)


def is_compressed(name: str) -> bool:
    """Whether a file of that name is gzip data."""
    return name.lower().endswith(".gz")


def is_lines(name: str, block: bytes) -> bool:
    """Whether each line of a file is a record, so that it can be cut at any line end.

    Args:
        name: of the file.
        block: its first BLOCK_BYTES, or all of a smaller one.
    """
    return not (is_table(name) or is_compressed(name) or _is_array(block.removeprefix(_BOM)))


def _is_array(block: bytes) -> bool:
    return block.lstrip().startswith(b"[")


def _blocks(path: Source, tell: Callable[[int], None], line: int) -> Iterator[bytes]:
    compressed = is_compressed(path.name)
    with path.open("rb") as file, gzip.open(file) if compressed else nullcontext(file) as stream:
        block = stream.read(BLOCK_BYTES)
        if line == 1:
            if not compressed and block.startswith(b"\x1f\x8b"):
                raise UsageError(f"{path}: gzip data under a plain name; rename it to {path.name}.gz")
            if _is_binary(block):
                raise UsageError(
                    f"{path}: not a text file in UTF-8; give reviews as JSON lines, as a JSON array or as CSV"
                )
            block = block.removeprefix(_BOM)
        yield block
        while block := stream.read(BLOCK_BYTES):
            tell(file.tell())
            yield block


def _is_binary(block: bytes) -> bool:
    text = block[: 1 << 16].decode("utf-8", "replace")
    odd = text.count("\ufffd") + sum(text.count(chr(code)) for code in range(32) if code not in _TEXT_CONTROLS)
    return odd > _MAX_ODD_SHARE * len(text)


def _records(path: Source, blocks: Iterator[bytes], fields: Fields, line: int) -> Iterator[Line]:
    if is_table(path.name):
        yield from read_table(path, _lines(blocks, 1), fields)
        return
    first = next(blocks, b"")
    blocks = chain([first], blocks)
    if line > 1 or not _is_array(first):
        yield from _lines(blocks, line)
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
