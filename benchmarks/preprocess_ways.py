"""The ways to preprocess that benchmarks.preprocess measures: each a command of its own, run into an empty folder."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.preprocess_input import sound_slice
from benchmarks.preprocess_watch import Peak, Taken, timed, watched
from mr.stopwords import ENGLISH

START_LINES = 100
"""the original's start-up is measured on so many"""


@dataclass
class Way:
    """A way to preprocess, and what its runs took."""

    name: str
    command: Sequence[str]
    source: Path
    cores: set[int]
    makes_dataset: bool = True
    runs: list[Taken] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """The median."""
        return median(run.seconds for run in self.runs)

    def as_json(self) -> dict[str, Any]:
        """The figures."""
        size = self.source.stat().st_size
        return {
            "seconds": round(self.seconds, 3),
            "rounds": [round(run.seconds, 3) for run in self.runs],
            "cpu_seconds": round(median(run.cpu_seconds for run in self.runs), 3),
            "bytes": size,
            "mb_per_s": round(size / 1e6 / self.seconds, 3),
        }


class Bench:
    """Runs ways, each into an empty folder.

    Args:
        folder: for all that they write.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.result = folder, folder / "run" / "result"
        self.digest = ""
        """of the dataset that the ways make"""

    def run(self, way: Way) -> None:
        """Let a way have its turn.

        Raises:
            OSError: it failed.
            ValueError: its dataset is another one than that of the ways before.
        """
        way.runs.append(timed(self._command(way), self._emptied(), cores=way.cores, log=self.folder / way.name))
        if way.makes_dataset:
            found = json.loads((self.result / "dataset.json").read_text())["digest"]
            if self.digest not in ("", found):
                raise ValueError(f"{way.name} made the dataset {found}, the ways before it {self.digest}")
            self.digest = found

    def peak(self, way: Way) -> Peak:
        """Run a way and sample what it takes.

        Raises:
            OSError: it failed.
        """
        log = self.folder / f"{way.name}-peak"
        return watched(self._command(way), self._emptied(), self.result, cores=way.cores, log=log)

    def clear(self) -> None:
        """Remove what the last way made."""
        shutil.rmtree(self.result.parent, ignore_errors=True)

    def _command(self, way: Way) -> list[str]:
        return [sys.executable, "-m", *way.command, str(way.source), "--out", str(self.result)]

    def _emptied(self) -> Path:
        self.clear()
        self.result.parent.mkdir(parents=True)
        return self.result.parent


def all_ways(source: Path, first: Path, folder: Path, cores: set[int]) -> list[Way]:
    """The ways in the order of their turns."""
    stop_words = folder / "stop-words.txt"
    stop_words.write_text("".join(f"{word}\n" for word in sorted(ENGLISH)))
    number, one = str(len(cores)), {max(cores)}
    original = ["benchmarks.preprocess_original", "--stop-words", str(stop_words), "--cores", number]
    return [
        Way("ours", ["mr", "--cores", number], source, cores),
        Way("bare_loop", ["benchmarks.preprocess_bare", "--cores", number], source, cores),
        Way("ours_1_core", ["mr", "--cores", "1"], source, one),
        Way("ours_cores_1", ["mr", "--cores", "1"], source, cores),
        Way("original", original, first, cores, makes_dataset=False),
        Way("original_start", original, sound_slice(first, START_LINES), cores, makes_dataset=False),
    ]
