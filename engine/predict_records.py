"""The texts of reviews in files that `python -m mr` reads too: JSON objects or Python dicts, an array of them, CSV.

Here a broken line has no quarantine: it becomes an empty text, is counted, and the first one is told.
"""

from __future__ import annotations

import ast
import csv
import json
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from engine.errors import UsageError

TEXT_FIELDS = ("reviewText", "text")
MAX_ELEMENT_CHARACTERS = 16 << 20
"""of an array; one that is longer is taken for broken"""
_MAX_DICT_CHARACTERS = 1 << 18  # as in preprocessing: the parser takes up to 500 bytes of memory for a hostile one
_SHOWN_COLUMNS = 20
# Numbers are not looked at, and one of 5,000 digits, which int refuses, is no reason to fail.
_DECODER = json.JSONDecoder(parse_int=float)
_BETWEEN = re.compile(r"[ \t\n\r,]*")
_CURE = "write one object a line in a .jsonl file, where a broken one costs no other"
_BLANK_LINE = object()


class _NoText(ValueError):
    """The message says what is wrong with a record."""


def record_texts(path: Path, lines: Iterator[str], column: str | None, say: Callable[[str], None]) -> Iterator[str]:
    """The text of each line, "" for what is no review; `say` is told of those at the end."""
    yield from _told(path, "line", map(_parse_line, lines), column, say)


def array_texts(path: Path, pieces: Iterator[str], column: str | None, say: Callable[[str], None]) -> Iterator[str]:
    """The text of each element of the JSON array in pieces of text, "" for what is no review; `say` is told of those.

    Raises:
        UsageError: the array is broken.
    """
    yield from _told(path, "element", _elements(path, pieces), column, say)


def table_texts(path: Path, lines: Iterator[str], column: str | None) -> Iterator[str]:
    """The text column of each record of a CSV file; "" for blank lines and records that are too short.

    Raises:
        UsageError: no such column, or a quote that is never closed.
    """
    csv.field_size_limit(max(csv.field_size_limit(), 2 * MAX_ELEMENT_CHARACTERS))  # of the whole process
    rows = csv.reader(line + "\n" for line in lines)
    try:
        header = next((row for row in rows if row), None)
        if header is None:
            return
        names = [name.strip() for name in header]
        wanted = next((name for name in _fields(column) if name in names), None)
        if wanted is None:
            shown = ", ".join(names[:_SHOWN_COLUMNS]) + (", ..." if len(names) > _SHOWN_COLUMNS else "")
            raise UsageError(
                f"{path}: no column {' or '.join(_fields(column))} in the CSV header ({shown}); name the one with the "
                "text: --column NAME"
            )
        place = names.index(wanted)
        for row in rows:
            yield row[place] if len(row) > place else ""
    except csv.Error as error:
        raise UsageError(
            f"{path}: line {rows.line_num}: not usable as CSV ({error}): a quote that is never closed?"
        ) from None


def _fields(column: str | None) -> tuple[str, ...]:
    return TEXT_FIELDS if column is None else (column,)


def _told(
    path: Path, unit: str, records: Iterator[Any], column: str | None, say: Callable[[str], None]
) -> Iterator[str]:
    without, first = 0, ""
    for number, record in enumerate(records, 1):
        try:
            text = "" if record is _BLANK_LINE else _text_of(record, _fields(column))
        except _NoText as error:
            text = ""
            without += 1
            first = first or f"{unit} {number}: {error}"
        yield text
    if without:
        each = f'{without:,} {unit}{"s" if without > 1 else ""} without a usable text, answered "unknown"'
        say(f"{path}: {each} ({first}); --column NAME names another field")


def _text_of(record: Any, fields: tuple[str, ...]) -> str:
    if isinstance(record, _NoText):
        raise record
    if not isinstance(record, dict):
        raise _NoText("not an object")
    there = [field for field in fields if field in record]
    if not there:
        raise _NoText(f"no field {' or '.join(fields)}")
    text = next((record[field] for field in there if record[field] is not None), "")
    if not isinstance(text, str):
        raise _NoText(f"the field {there[0]} is no string")
    return text


def _parse_line(line: str) -> Any:
    """The value of a line; a _NoText, not raised, where there is none."""
    if not line.strip():
        return _BLANK_LINE  # no review, and no mistake either
    try:
        return _DECODER.decode(line)
    except RecursionError:
        return _NoText("nested too deeply")
    except ValueError as error:
        if not line.lstrip().startswith("{'"):
            return _NoText(f"not JSON ({error})")
    if len(line) > _MAX_DICT_CHARACTERS:
        return _NoText(f"a Python dict longer than {_MAX_DICT_CHARACTERS:,} characters")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of "\d" in a string, say
            return ast.literal_eval(line.strip())
    except (SyntaxError, TypeError, ValueError, MemoryError, RecursionError):
        return _NoText("neither JSON nor a Python dict")


def _elements(path: Path, pieces: Iterator[str]) -> Iterator[Any]:
    text, at, count = next(pieces, "").lstrip(), 1, 1
    while True:
        found = _BETWEEN.match(text, at)
        assert found is not None, "a pattern that also matches nothing"
        at = found.end()
        if text[at : at + 1] == "]":
            return
        problem = "the array has no end"
        if at < len(text):
            try:
                value, at = _DECODER.raw_decode(text, at)
            except RecursionError:
                raise UsageError(f"{path}: element {count} of the array is nested too deeply; {_CURE}") from None
            except json.JSONDecodeError as error:
                problem = error.msg  # or it is only cut off here
            else:
                yield value
                count += 1
                continue
        piece = next(pieces, None)
        if piece is None or len(text) - at > MAX_ELEMENT_CHARACTERS:
            raise UsageError(f"{path}: element {count} of the array is not JSON ({problem}); {_CURE}")
        text, at = text[at:] + piece, 0
