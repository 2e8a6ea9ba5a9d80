"""One record of the input: what it says, or why it cannot be used. Pure functions."""

from __future__ import annotations

import json
import math
import re
from typing import Any

TEXT_FIELDS = ("reviewText", "text")
"""2014 and 2018 name it first, 2023 second"""
RATING_FIELDS = ("overall", "rating")
_NUMBER = re.compile(r"[1-5](?:\.0*)?", re.ASCII)
_KINDS = {
    dict: "an object",
    list: "a list",
    str: "a string",
    int: "a number",
    float: "a number",
    bool: "true or false",
    type(None): "null",
}


class Malformed(ValueError):
    """A record that is no review at all; the message is the reason, for people."""


def parse_review(record: bytes) -> tuple[str, int | None]:
    """Read one record.

    Returns:
        The text ("" where it is missing or null) and the stars: 1..5, None without a whole rating from 1 to 5.

    Raises:
        Malformed: no JSON object, or its text is no string. Invalid UTF-8 is no reason: it becomes U+FFFD.
    """
    try:
        review = json.loads(record.decode("utf-8", "replace"))
    except RecursionError:
        raise Malformed("not usable JSON: nested too deeply") from None
    except ValueError as error:
        raise Malformed(_reason(record, error)) from None
    if not isinstance(review, dict):
        raise Malformed(f"not a JSON object but {_KINDS[type(review)]}")
    field, text = _first(review, TEXT_FIELDS)
    if text is None:
        text = ""
    elif not isinstance(text, str):
        raise Malformed(f"{field} is {_KINDS[type(text)]}, not a string")
    return text, _stars(_first(review, RATING_FIELDS)[1])


def _reason(record: bytes, error: ValueError) -> str:
    if record.lstrip().startswith(b"{'"):
        return "not JSON but a Python dict: its strings stand in single quotes"
    if isinstance(error, json.JSONDecodeError):
        return f"not JSON: {error.msg} at character {error.pos + 1}"
    return "not usable JSON: a number with thousands of digits"


def _first(review: dict[str, Any], fields: tuple[str, ...]) -> tuple[str, Any]:
    """The first of the fields that is there and not null."""
    for field in fields:
        if review.get(field) is not None:
            return field, review[field]
    return fields[0], None


def _stars(rating: object) -> int | None:
    if isinstance(rating, str):
        rating = float(rating) if _NUMBER.fullmatch(rating.strip()) else None
    if isinstance(rating, bool) or not isinstance(rating, int | float) or not math.isfinite(rating):
        return None
    return int(rating) if rating in (1, 2, 3, 4, 5) else None
