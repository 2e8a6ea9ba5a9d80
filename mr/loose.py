"""Reads records that are Python dicts, as in the metadata files of 2014, and bounds how deep any record goes. Pure."""

from __future__ import annotations

import ast
import re
import warnings
from typing import Any

MAX_LOOSE_CHARACTERS = 1 << 18
"""a longer one is not looked at: Python's parser takes up to 500 bytes of memory for a character of hostile text"""
MAX_DEPTH = 100
"""levels of brackets; the interpreter's own limit depends on the runner that calls"""
_BRACKET = re.compile(r"[\[{(]|[\]})]")
# Possessive, and a string without an end reaches to the text's end: the search stays linear whatever the text is.
_STRING = re.compile(r"""'[^'\\]*+(?:\\.[^'\\]*+)*+(?:'|\\?\Z)|"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)""", re.DOTALL)


def is_loose(text: str) -> bool:
    """Whether it begins like a Python dict with a string as its first key."""
    return text.lstrip(" \t").startswith("{'")


def parse_loose(text: str) -> Any:
    """The literal that the text holds; nothing in it is ever run.

    Raises:
        ValueError: no literal, or a longer one than MAX_LOOSE_CHARACTERS; the message is the reason, for people.
    """
    if len(text) > MAX_LOOSE_CHARACTERS:
        raise ValueError(f"longer than {MAX_LOOSE_CHARACTERS:,} characters")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of "\d" in a string, say; it stands in millions of lines
            return ast.literal_eval(text)
    except (SyntaxError, TypeError, ValueError, MemoryError, RecursionError):
        # One reason for all: which of them long chains of operators end in depends on the runner's stack.
        raise ValueError("cannot be read") from None


def is_too_deep(text: str) -> bool:
    """Whether its brackets, those in strings left out, are nested more than MAX_DEPTH levels deep."""
    if text.count("[") + text.count("{") + text.count("(") <= MAX_DEPTH:
        return False
    depth = 0
    for bracket in _BRACKET.finditer(_STRING.sub("", text)):
        depth += 1 if bracket.group() in "[{(" else -1
        if depth > MAX_DEPTH:
            return True
    return False
