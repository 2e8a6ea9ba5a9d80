"""Malformed lines: where they are kept, and when they are too many."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, takewhile
from operator import itemgetter
from pathlib import Path
from typing import Any

from mr.counted import Counted, reasons_of
from mr.errors import TooManyMalformed
from mr.options import Options
from mr.records import NUMBER, QUARANTINE, merge_sorted, parts, read_quarantine
from mr.stores import Input

_SHOWN_REASONS = 8


def write_quarantine(path: Path, folder: Path, inputs: Sequence[Input]) -> None:
    """Write a JSON object a line for each malformed record, in the order of files and lines.

    Args:
        path: a new file, or one to be replaced.
        folder: output of the count job.
        inputs: the input files, in the order of their numbers.
    """
    with path.open("w", encoding="ascii") as stream:
        for file, line, reason, start in _entries(folder):
            entry: dict[str, Any] = {"file": inputs[file].name, "line": line, "reason": reason, "start": start}
            stream.write(json.dumps(entry) + "\n")


@dataclass(frozen=True)
class MalformedLines:
    """How many of how many lines are malformed."""

    lines: int
    files: list[tuple[str, int]]
    """name and malformed lines per file"""
    reasons: dict[str, int]
    folder: Path
    """a job's output, with the malformed records"""


def malformed_of(counted: Counted, folder: Path) -> MalformedLines:
    """From what the count job found, and its output folder."""
    files = [(file["file"], file["malformed"]) for file in counted.files]
    return MalformedLines(counted.counts["lines"], files, counted.reasons, folder)


def read_malformed(folder: Path, inputs: Sequence[Input], lines: Sequence[int]) -> MalformedLines:
    """From the output folder of the clean job, before its reviews are read; nothing where it stays on a cluster.

    Numbers and malformed records sort before reviews, so that the first lines of each part tell.
    """
    numbers: Counter[str] = Counter()
    for path in parts(folder):
        with path.open("rb") as stream:
            for line in takewhile(lambda line: line[:1] in (NUMBER, QUARANTINE), stream):
                if line.startswith(NUMBER):
                    name, value = line[len(NUMBER) :].split(b"\t")
                    numbers[name.decode()] += int(value)
    files = [(path.name, numbers[f"file:{number}:malformed"]) for number, path in enumerate(inputs)]
    return MalformedLines(sum(lines), files, reasons_of(numbers), folder)


def check_malformed(found: MalformedLines, options: Options) -> None:
    """Stop where too many lines are malformed; the quarantine file then stands beside the dataset's place.

    Raises:
        TooManyMalformed: more are than options.max_malformed percent.
    """
    malformed, percent, out = sum(count for _, count in found.files), options.max_malformed, options.out.absolute()
    if malformed * 100 <= percent * found.lines:
        return
    kept_at = out.with_name(f"{out.name}.quarantine.jsonl")
    kept_at.parent.mkdir(parents=True, exist_ok=True)
    write_quarantine(kept_at, found.folder, options.inputs)
    worst, most = max(found.files, key=lambda file: (file[1], file[0]))
    reasons = [f"{reason}: {count:,}" for reason, count in found.reasons.items()]
    if len(reasons) > _SHOWN_REASONS:
        reasons[_SHOWN_REASONS:] = [f"{len(reasons) - _SHOWN_REASONS} other reasons"]
    share = 100 * malformed / found.lines
    raise TooManyMalformed(
        f"{malformed:,} of {found.lines:,} lines ({share:.3g} %) are malformed, {most:,} of them in "
        f"{worst}, more than --max-malformed {percent:g} allows: {'; '.join(reasons)}; each stands in "
        f"{kept_at} with file, line and reason; mend the input, or let it pass with --max-malformed {math.ceil(share)}"
    )


def example(folder: Path, inputs: Sequence[Input]) -> str:
    """Place and reason of the first malformed record; "" without one."""
    for file, line, reason, _ in _entries(folder):
        return f"{inputs[file].name} line {line}: {reason}"
    return ""


def _entries(folder: Path) -> Iterator[tuple[int, int, str, str]]:
    # One line of a JSON array can hold several records; their order must not depend on the runner.
    for _, group in groupby(merge_sorted(folder, QUARANTINE), itemgetter(0)):
        for key, value in sorted(group):
            yield read_quarantine(key, value)
