"""The original's method, written anew from its description, on the same kind of input as `python -m mr`.

    reviews --job 1: one (word, 1) a word, summed--> vocabulary
    reviews --job 2: ids of the words, sorted by product and reviewer--> one HDF5 dataset per row, a file per reducer
        --merge--> one HDF5 dataset, a chunk per row

Both mappers parse JSON, find words with a regex and drop stop words; rows are padded to a fixed length. mrjob's local
runner with its usual protocols, both cores. As in the original a line that is not JSON ends a mapper, so the input
must be sound, and duplicates stay. What costs nothing to do well is done well: the merge opens each file once and
knows its size beforehand, HDF5 files are not compressed, ids are numpy arrays of two bytes.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from mrjob.job import MRJob
from mrjob.step import MRStep

WORD = re.compile(r"[a-z0-9']+")
VOCABULARY_WORDS = 10_000
LENGTH = 256


class OriginalJob(MRJob):
    """Counts words without --vocabulary; with it, encodes reviews into --folder."""

    def configure_args(self) -> None:
        """Add the files of both jobs."""
        super().configure_args()
        self.add_file_arg("--stop-words", help="one a line")
        self.add_file_arg("--vocabulary", help="one word a line")
        self.add_passthru_arg("--folder", help="for the HDF5 files")

    def steps(self) -> list[MRStep]:
        """One step in either case."""
        if self.options.vocabulary is None:
            return [MRStep(mapper_init=self.load, mapper=self.map_words, reducer=self.sum_words)]
        return [MRStep(mapper_init=self.load, mapper=self.map_ids, reducer_init=self.open, reducer=self.write_rows)]

    def load(self) -> None:
        """Read what the mapper needs."""
        self.stop_words = frozenset(Path(self.options.stop_words).read_text().split())
        if self.options.vocabulary is not None:
            words = Path(self.options.vocabulary).read_text().split()
            self.ids = {word: number for number, word in enumerate(words, 2)}

    def words(self, review: dict[str, Any]) -> list[str]:
        """The words of a review, stop words left out."""
        return [word for word in WORD.findall(review["reviewText"].lower()) if word not in self.stop_words]

    def map_words(self, _: None, line: str) -> Iterator[tuple[str, int]]:
        """One record a word."""
        for word in self.words(json.loads(line)):
            yield word, 1

    def sum_words(self, word: str, counts: Iterable[int]) -> Iterator[tuple[str, int]]:
        """Occurrences of a word."""
        yield word, sum(counts)

    def map_ids(self, _: None, line: str) -> Iterator[tuple[list[str], list[Any]]]:
        """One record a review."""
        review = json.loads(line)
        ids = [self.ids.get(word, 1) for word in self.words(review)][:LENGTH]
        yield [review["asin"], review["reviewerID"]], [int(review["overall"]), ids]

    def open(self) -> None:
        """A file of the reducer's own."""
        self.rows = 0
        self.file = h5py.File(Path(self.options.folder) / f"part-{os.getpid()}.h5", "w")

    def write_rows(self, _: list[str], reviews: Iterable[list[Any]]) -> None:
        """One dataset per row."""
        for stars, ids in reviews:
            row = np.zeros(1 + LENGTH, np.uint16)
            row[0], row[1 : 1 + len(ids)] = stars, ids
            self.file.create_dataset(f"{self.rows:09d}", data=row)
            self.rows += 1


def merge(folder: Path, out: Path) -> int:
    """Copy all rows into one dataset with a chunk per row; returns their number."""
    files = [h5py.File(path, "r") for path in sorted(folder.glob("part-*.h5"))]
    total = sum(map(len, files))
    with h5py.File(out, "w") as target:
        rows = target.create_dataset("reviews", (total, 1 + LENGTH), np.uint16, chunks=(1, 1 + LENGTH))
        done = 0
        for file in files:
            for name in file:
                rows[done] = file[name][:]
                done += 1
            file.close()
    return total


def run(arguments: list[str], cores: int) -> Iterator[tuple[Any, Any]]:
    """Run the job with mrjob's local runner; yields its output."""
    job = OriginalJob(["-r", "local", "--no-conf", "--no-bootstrap-mrjob", "--num-cores", str(cores), *arguments])
    with job.make_runner() as runner:
        runner.run()
        yield from job.parse_output(runner.cat_output())


def preprocess(source: Path, out: Path, stop_words: Path, cores: int, folder: Path) -> dict[str, float]:
    """All of it; returns the rows, and the seconds of each stage."""
    began = time.perf_counter()
    arguments = [str(source), "--stop-words", str(stop_words)]
    counted = sorted(run(arguments, cores), key=lambda entry: (-entry[1], entry[0]))
    vocabulary = folder / "vocabulary.txt"
    vocabulary.write_text("".join(f"{word}\n" for word, _ in counted[:VOCABULARY_WORDS]))
    counting = time.perf_counter()
    list(run([*arguments, "--vocabulary", str(vocabulary), "--folder", str(folder)], cores))
    encoding = time.perf_counter()
    rows = merge(folder, out)
    times = {"vocabulary": counting - began, "rows": encoding - counting, "merge": time.perf_counter() - encoding}
    return {"rows_written": rows, **times}


def main() -> int:
    """Run the command; its last line is one JSON object."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.preprocess_original", description=__doc__)
    parser.add_argument("input", type=Path, help="JSON lines, all of them sound")
    parser.add_argument("--out", type=Path, required=True, help="new HDF5 file")
    parser.add_argument("--stop-words", type=Path, required=True, help="file with one a line")
    parser.add_argument("--cores", type=int, default=2, help="processes (default: %(default)s)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = preprocess(options.input, options.out, options.stop_words, options.cores, Path(folder))
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    # mrjob starts this file again for each task.
    if any(word in ("--mapper", "--reducer") for word in sys.argv):
        OriginalJob.run()
    else:
        sys.exit(main())
