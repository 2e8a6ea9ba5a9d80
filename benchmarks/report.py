"""What a benchmark tells: a table for people, its targets, and one JSON object on the last line."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Target:
    """A figure and its bound."""

    name: str
    measured: float | None
    """None: it could not be measured, so nothing can be said"""
    at_least: float | None = None
    at_most: float | None = None
    aim: float | None = None
    """what would be better still; for information"""

    @property
    def met(self) -> bool | None:
        """Whether it was reached; None where that cannot be judged."""
        if self.measured is None:
            return None
        return (self.at_least is None or self.measured >= self.at_least) and (
            self.at_most is None or self.measured <= self.at_most
        )

    def as_json(self) -> dict[str, Any]:
        """The fields that say something."""
        values = {"measured": self.measured, "at_least": self.at_least, "at_most": self.at_most, "aim": self.aim}
        return {key: value for key, value in values.items() if value is not None} | {"met": self.met}

    def as_line(self) -> str:
        """One line for people."""
        bound = f"at least {self.at_least:g}" if self.at_least is not None else f"at most {self.at_most:g}"
        verdict = {True: "met", False: "MISSED", None: "not judged"}[self.met]
        measured = "-" if self.measured is None else f"{self.measured:.3g}"
        return f"  {self.name:<44}{measured:>9}   {bound + (f' (aim {self.aim:g})' if self.aim else ''):<24}{verdict}"


def ratio(over: float | None, under: float | None) -> float | None:
    """Their quotient; None where one is missing."""
    return None if over is None or not under else over / under


def rounded(value: float | None, digits: int) -> float | None:
    """The value with so many digits behind the point; None where there is none."""
    return None if value is None else round(value, digits)


def verdicts(targets: Sequence[Target]) -> dict[str, Any]:
    """The JSON fields "targets", "missed" and "not_judged"."""
    return {
        "targets": {target.name: target.as_json() for target in targets},
        "missed": [target.name for target in targets if target.met is False],
        "not_judged": [target.name for target in targets if target.met is None],
    }


def machine(packages: Sequence[str]) -> dict[str, Any]:
    """What the figures were measured on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": models[0] if models else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "python": sys.version.split()[0],
        "packages": {name: metadata.version(name) for name in packages},
    }


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns of text; the first and the last to the left, those between to the right."""
    widths = [max(len(row[column]) for row in (heads, *rows)) for column in range(len(heads))]
    lines = []
    for row in (heads, *rows):
        cells = [cell.rjust(width) for cell, width in zip(row[1:-1], widths[1:-1], strict=True)]
        lines.append("  ".join([row[0].ljust(widths[0]), *cells, row[-1]]).rstrip())
    return "\n".join(lines)


def finish(result: Mapping[str, Any], path: Path | None) -> None:
    """Write the result file, if one is wanted, and print the last line.

    Raises:
        OSError: the file cannot be written.
    """
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result), flush=True)
