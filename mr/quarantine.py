"""Malformed lines: where they are kept, and when they are too many."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

from mr.counted import Counted
from mr.errors import UsageError
from mr.records import QUARANTINE, merge_sorted, read_quarantine
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


def check_malformed(counted: Counted, percent: float, out: Path, folder: Path, inputs: Sequence[Input]) -> None:
    """Stop where too many lines are malformed; the quarantine file then stands beside the dataset's place.

    Args:
        counted: from the count job.
        percent: of all lines that may be malformed.
        out: folder that the dataset would have had.
        folder: output of the count job.
        inputs: the input files, in the order of their numbers.

    Raises:
        UsageError: more are.
    """
    lines, malformed = counted.counts["lines"], counted.counts["malformed"]
    if malformed * 100 <= percent * lines:
        return
    kept_at = out.absolute().with_name(f"{out.absolute().name}.quarantine.jsonl")
    kept_at.parent.mkdir(parents=True, exist_ok=True)
    write_quarantine(kept_at, folder, inputs)
    worst = max(counted.files, key=lambda file: (file["malformed"], file["file"]))
    reasons = [f"{reason}: {count:,}" for reason, count in counted.reasons.items()]
    if len(reasons) > _SHOWN_REASONS:
        reasons[_SHOWN_REASONS:] = [f"{len(reasons) - _SHOWN_REASONS} other reasons"]
    share = 100 * malformed / lines
    raise UsageError(
        f"{malformed:,} of {lines:,} lines ({share:.3g} %) are malformed, {worst['malformed']:,} of them in "
        f"{worst['file']}, more than --max-malformed {percent:g} allows: {'; '.join(reasons)}; each stands in "
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
