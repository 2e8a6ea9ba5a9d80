"""What the count job found: read from its output, and checked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mr.errors import RunError
from mr.records import NUMBER, WORD, decode_words, read_all
from mr.stores import Input
from native.format import COUNT_FIELDS
from native.text import SPLITS


@dataclass(frozen=True)
class Counted:
    """What the count job found."""

    files: list[dict[str, Any]]
    """per input file: its name and COUNT_FIELDS"""
    counts: dict[str, int]
    """COUNT_FIELDS of all files"""
    reasons: dict[str, int]
    """malformed lines per reason, the most frequent first"""
    lengths: dict[str, dict[int, int]]
    """rows per length in tokens, per split"""
    words: list[tuple[str, int]]
    """the most frequent words and how often each stands in the training split"""
    all_words: int
    different_words: int


def read_counts(folder: Path, inputs: Sequence[Input], lines: Sequence[int], vocab_size: int) -> Counted:
    """Read the job's output.

    Args:
        folder: the output.
        inputs: the input files, in the order of their numbers.
        lines: records that were read of each.
        vocab_size: words that are kept.

    Raises:
        RunError: a line is not accounted for.
    """
    numbers: Counter[str] = Counter()
    for key, value in read_all(folder, NUMBER):
        numbers[key.decode()] += int(value)
    files = [_file_counts(numbers, number, path, lines[number]) for number, path in enumerate(inputs)]
    lengths: dict[str, dict[int, int]] = {split: {} for split in SPLITS}
    for name, count in numbers.items():
        if name.startswith("length:"):
            _, split, length = name.split(":")
            lengths[split][int(length)] = count
    words = sorted(
        ((decode_words(word)[0], int(count)) for word, count in read_all(folder, WORD)),
        key=lambda entry: (-entry[1], entry[0]),
    )
    return Counted(
        files=files,
        counts={field: sum(file[field] for file in files) for field in COUNT_FIELDS},
        reasons=reasons_of(numbers),
        lengths=lengths,
        words=words[:vocab_size],
        all_words=numbers["words:all"],
        different_words=numbers["words:different"],
    )


def _file_counts(numbers: Counter[str], number: int, path: Input, lines: int) -> dict[str, Any]:
    found = {field: numbers[f"file:{number}:{field}"] for field in COUNT_FIELDS[1:]}
    if sum(found.values()) != lines:
        raise RunError(
            f"{path}: {lines} lines were read, but {sum(found.values())} accounted for ({found}); "
            "this is an error in the program: nothing was written, please report it"
        )
    return {"file": path.name, "lines": lines, **found}


def reasons_of(numbers: Counter[str]) -> dict[str, int]:
    """Malformed lines per reason, the most frequent first."""
    found = {name.removeprefix("reason:"): count for name, count in numbers.items() if name.startswith("reason:")}
    return dict(sorted(found.items(), key=lambda entry: (-entry[1], entry[0])))
