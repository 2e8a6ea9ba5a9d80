"""One record of the input: what it says, or why it cannot be used. Pure functions."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from mr.loose import MAX_DEPTH, is_loose, is_too_deep, parse_loose

START_CHARACTERS = 200
"""of a malformed record that are quoted"""
_NUMBER = re.compile(r"[1-5](?:\.0*)?", re.ASCII)
_KINDS = {
    dict: "an object",
    list: "a list",
    tuple: "a list",
    str: "a string",
    int: "a number",
    float: "a number",
    bool: "true or false",
    type(None): "null",
}


@dataclass(frozen=True)
class Fields:
    """Where a review's parts stand; the first field that is there and not null counts."""

    text: tuple[str, ...] = ("reviewText", "text")
    """2014 and 2018 name it first, 2023 second"""
    rating: tuple[str, ...] = ("overall", "rating")


class Malformed(ValueError):
    """A record that is no review at all; the message is the reason, for people.

    Args:
        kind: the reason without what differs from record to record: reasons are counted by it. Of the program's own
            words alone, ASCII.
        detail: what else is known.
        start: the record's beginning, where the record itself is not at hand.
    """

    def __init__(self, kind: str, detail: str = "", start: str = "") -> None:
        super().__init__(f"{kind} {detail}".rstrip())
        self.kind, self.detail, self.start = kind, detail, start


def parse_review(record: bytes, fields: Fields) -> tuple[str, int | None]:
    """Read one record: a JSON object, or a Python dict.

    Returns:
        The text ("" where it is missing or null) and the stars: 1..5, None without a whole rating from 1 to 5.

    Raises:
        Malformed: neither, or its text is no string. Invalid UTF-8 is no reason: it becomes U+FFFD.
    """
    review = _parse(record.decode("utf-8", "replace"))
    if not isinstance(review, dict):
        raise Malformed(f"not an object but {_kind(review)}")
    field, text = _first(review, fields.text)
    if text is None:
        text = ""
    elif not isinstance(text, str):
        raise Malformed(f"the text is {_kind(text)}, not a string", f"(field {field})")
    return text, _stars(_first(review, fields.rating)[1])


def start_of(record: bytes) -> str:
    """What is quoted of a malformed record."""
    return record[: 4 * START_CHARACTERS].decode("utf-8", "replace")[:START_CHARACTERS]


def _parse(text: str) -> Any:
    if is_too_deep(text):
        raise Malformed(f"nested more than {MAX_DEPTH} levels deep")
    try:
        return json.loads(text)
    except ValueError as error:
        if not is_loose(text):
            raise _not_json(error) from None
    try:
        return parse_loose(text)
    except ValueError as error:
        raise Malformed(f"a Python dict that is not usable ({error})") from None


def _not_json(error: ValueError) -> Malformed:
    if isinstance(error, json.JSONDecodeError):
        what = error.msg.removesuffix(" at").removesuffix(" starting")
        return Malformed(f"not JSON ({what})", f"at character {error.pos + 1}")
    return Malformed("a number with thousands of digits")


def _kind(value: object) -> str:
    return _KINDS.get(type(value), "something else")


def _first(review: dict[str, Any], fields: tuple[str, ...]) -> tuple[str, Any]:
    """The first of the fields that is there and not null."""
    for field in fields:
        if review.get(field) is not None:
            return field, review[field]
    return fields[0], None


def _stars(rating: object) -> int | None:
    if isinstance(rating, str):
        rating = float(rating) if _NUMBER.fullmatch(rating.strip()) else None
    if isinstance(rating, bool) or not isinstance(rating, int | float):
        return None
    return int(rating) if rating in (1, 2, 3, 4, 5) else None
