"""Takes a CSV file with a header apart, record by record: each becomes a JSON object of the wanted columns.

The csv module decides where a record ends, so that quotes, and commas and line ends inside them, have no rules of their
own here. One thing it does not tell: that a quote was never closed, so that the rest of the file went into one field.
Then the lines of that record are read again, each for itself, and the stray quote costs one line.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator

from mr.arrays import MAX_RECORD_BYTES
from mr.errors import UsageError
from mr.review import Fields, Malformed, start_of

Line = tuple[int, bytes | Malformed]
"""line number and content without its line end, or why there is none"""
_SHOWN_COLUMNS = 20
_SHOWN_CHARACTERS = 40


def read_table(path: object, lines: Iterator[Line], fields: Fields) -> Iterator[Line]:
    """Yield (number of its first line, JSON object or reason) of each record behind the header; b"" for a blank line.

    Args:
        path: for messages.
        lines: of the file, from its beginning.
        fields: the columns that are looked for.

    Raises:
        UsageError: there are lines, but no header with these columns.
    """
    rows = _rows(lines)
    header = next((row for _, _, row in rows if row), None)
    if header is None:
        return
    if isinstance(header, Malformed):
        raise UsageError(f"{path}: its first line is no CSV header: {header}; write the names of the columns there")
    wanted = _columns(path, [name.strip() for name in header], fields)
    for number, start, row in rows:
        if isinstance(row, list) and row and len(row) != len(header):
            kind = f"{'fewer' if len(row) < len(header) else 'more'} fields than the CSV header"
            row = Malformed(kind, f"({len(row)}, not {len(header)})", start_of(start))
        if isinstance(row, Malformed):
            yield number, row
        else:
            # A cell without content is one that is not there.
            review = {name: row[column] for name, column in wanted.items() if row[column]} if row else None
            yield number, json.dumps(review).encode() if row else b""


def _columns(path: object, header: list[str], fields: Fields) -> dict[str, int]:
    """The wanted columns and their places."""
    for part, names in (("text", fields.text), ("rating", fields.rating)):
        if not set(names) & set(header):
            there = ", ".join(name[:_SHOWN_CHARACTERS] for name in header[:_SHOWN_COLUMNS])
            there += ", ..." if len(header) > _SHOWN_COLUMNS else ""
            raise UsageError(
                f"{path}: no column {' or '.join(names)} in the CSV header ({there}); "
                f"name the one with the {part}: --columns text=...,rating=..."
            )
    return {name: header.index(name) for name in (*fields.text, *fields.rating) if name in header}


class _Feed:
    """Hands lines to the csv module, and remembers those of the record that it is at."""

    def __init__(self, lines: Iterator[Line]) -> None:
        self._lines = lines
        self.begin()

    def begin(self) -> None:
        """A new record."""
        self.record: list[Line] = []
        self.endless = False
        self._bytes = 0

    def __iter__(self) -> _Feed:
        return self

    def __next__(self) -> str:
        number, line = next(self._lines, (0, None))
        if line is not None:
            self.record.append((number, line))
            self._bytes += len(line) + 1 if isinstance(line, bytes) else 0
        too_long = len(self.record) > 1 and self._bytes > MAX_RECORD_BYTES
        if line is None or isinstance(line, Malformed) or too_long:
            # Behind a whole record nobody asks for one more line: a quote is still open here.
            self.endless = bool(self.record)
            raise StopIteration
        return line.decode("utf-8", "replace") + "\n"


def _rows(lines: Iterator[Line]) -> Iterator[tuple[int, bytes, list[str] | Malformed]]:
    """Yield (number of the first line, that line, fields or reason) of each record."""
    csv.field_size_limit(max(csv.field_size_limit(), 2 * MAX_RECORD_BYTES))  # of the whole process
    feed = _Feed(lines)
    reader = csv.reader(feed)
    while True:
        feed.begin()
        row = _row(reader, feed)
        if not feed.record:
            return
        if not feed.endless:
            yield *_first(feed.record), row
            continue
        for number, line in feed.record:
            if isinstance(line, Malformed):
                yield number, b"", line
                continue
            alone = _Feed(iter([(number, line)]))
            row = _row(csv.reader(alone), alone)
            if alone.endless:
                row = Malformed("a quote in CSV that is never closed", start=start_of(line))
            yield number, line, row


def _row(reader: Iterator[list[str]], feed: _Feed) -> list[str] | Malformed:
    try:
        return next(reader, [])
    except csv.Error:
        _, line = _first(feed.record)
        return Malformed("a carriage return in CSV outside of quotes", start=start_of(line))


def _first(record: list[Line]) -> tuple[int, bytes]:
    number, line = record[0]
    assert isinstance(line, bytes), "csv was given nothing else"
    return number, line
