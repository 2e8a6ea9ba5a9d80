"""Where the texts to be judged come from: arguments, files, standard input; in blocks, so that memory is bounded.

A file's name says what it is: .json and .jsonl hold a review a line (a JSON object or a Python dict) or one JSON array
of them, .csv has a header, anything else is a text a line; each may be gzip data. What is no review keeps its place, as
an empty text: the answers stand in the order of the input, one each.
"""

from __future__ import annotations

import codecs
import gzip
import select
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from engine.errors import UsageError
from engine.predict_records import array_texts, record_texts, table_texts

BLOCK_TEXTS = 4096
"""texts of a block, which are sorted by length together"""
BLOCK_CHARACTERS = 4 << 20
"""a block that has so many ends early"""
MAX_LINE_BYTES = 16 << 20
"""of a longer line the beginning counts: a line without an end must not fill the memory"""
PAUSE_SECONDS = 0.1
"""without a line on standard input, after which those that came are answered; a program that writes on does not pause,
so that its lines meet in the same batches, and get the same last digits, every time"""
_READ_BYTES = 1 << 20
_BOM = b"\xef\xbb\xbf"


def blocks_of(texts: Iterable[str | None]) -> Iterator[list[str]]:
    """Cut texts into blocks; None among them ends a block early."""
    block: list[str] = []
    characters = 0
    for text in texts:
        if text is not None:
            block.append(text)
            characters += len(text)
        if block and (text is None or len(block) == BLOCK_TEXTS or characters >= BLOCK_CHARACTERS):
            yield block
            block, characters = [], 0
    if block:
        yield block


def argument_texts(arguments: Iterable[str]) -> Iterator[str]:
    """Texts of the command line; bytes of them that are not UTF-8 become U+FFFD."""
    for argument in arguments:
        yield argument.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def stream_texts(stream: Any) -> Iterator[str | None]:
    """A text a line, and None where nothing more comes for a moment: who writes a line and waits is answered.

    Args:
        stream: as sys.stdin.

    Raises:
        UsageError: it is closed, or cannot be read.
    """
    if stream is None:
        raise UsageError("standard input is closed: give texts, --file FILE, or lines on standard input")
    if not hasattr(stream, "buffer"):
        yield from (line.rstrip("\r\n") for line in stream)
        return
    lines = _Lines()
    try:
        while data := stream.buffer.read1(_READ_BYTES):
            lines.add(data)
            yield from lines.take()
            if not _more_comes(stream):
                yield None
    except OSError as error:
        raise UsageError(f"standard input cannot be read ({error.strerror or error})") from None
    yield from lines.end()


def file_texts(path: Path, column: str | None, say: Callable[[str], None]) -> Iterator[str]:
    """The texts of a file, one for each line or record.

    Args:
        path: of the file.
        column: field or column of the text; None: reviewText, or text where that is missing.
        say: is told, at the end, how many lines were no review and what was wrong with the first.

    Raises:
        UsageError: missing, unreadable, no text, damaged gzip data, a broken array, a CSV header without such a column.
    """
    kind = path.name.lower().removesuffix(".gz").rpartition(".")[2]
    try:
        with path.open("rb") as file:
            stream: Any = gzip.GzipFile(fileobj=file) if file.peek(2)[:2] == b"\x1f\x8b" else file
            start = stream.peek(1 << 13)
            if b"\0" in start:
                raise UsageError(f"{path}: not a text file in UTF-8; give a text a line, .jsonl, .json or .csv")
            lines = _lines_of(stream)
            if kind == "csv":
                yield from table_texts(path, lines, column)
            elif kind not in ("json", "jsonl"):
                yield from lines
            elif start.removeprefix(_BOM).lstrip().startswith(b"["):
                blocks = iter(lambda: stream.read(_READ_BYTES), b"")
                yield from array_texts(path, codecs.iterdecode(blocks, "utf-8-sig", "replace"), column, say)
            else:
                yield from record_texts(path, lines, column, say)
    except EOFError:
        raise UsageError(f"{path}: the gzip data ends early: copy or download the file again") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise UsageError(f"{path}: damaged gzip data ({error}); copy or download the file again") from None
    except FileNotFoundError:
        raise UsageError(f"{path}: no such file; check the path") from None
    except IsADirectoryError:
        raise UsageError(f"{path}: a folder; name the files in it") from None
    except OSError as error:
        raise UsageError(
            f"{path}: cannot be read ({error.strerror or error}); check the path and its permissions"
        ) from None


class _Lines:
    """Lines out of pieces of bytes."""

    def __init__(self) -> None:
        self._ready: list[str] = []
        self._tail: list[bytes] = []
        self._tail_bytes = 0

    def add(self, data: bytes) -> None:
        """The next piece."""
        *whole, tail = data.split(b"\n")
        for line in whole:
            self._keep(line)
            self._put()
        self._keep(tail)

    def take(self) -> list[str]:
        """The lines that are whole, once."""
        lines, self._ready = self._ready, []
        return lines

    def end(self) -> list[str]:
        """What is left at the end of the input, whose last line may lack a line end."""
        if self._tail_bytes:
            self._put()
        return self.take()

    def _keep(self, data: bytes) -> None:
        data = data[: MAX_LINE_BYTES - self._tail_bytes]
        if data:
            self._tail.append(data)
            self._tail_bytes += len(data)

    def _put(self) -> None:
        self._ready.append(b"".join(self._tail).removesuffix(b"\r").decode("utf-8", "replace"))
        self._tail, self._tail_bytes = [], 0


def _more_comes(stream: Any) -> bool:
    """Whether a read would not wait longer than a moment; True where that cannot be told."""
    try:
        return bool(select.select([stream.buffer], [], [], PAUSE_SECONDS)[0])
    except (OSError, ValueError):
        return True


def _lines_of(stream: Any) -> Iterator[str]:
    lines = _Lines()
    data = stream.read(_READ_BYTES).removeprefix(_BOM)
    while data:
        lines.add(data)
        yield from lines.take()
        data = stream.read(_READ_BYTES)
    yield from lines.end()
