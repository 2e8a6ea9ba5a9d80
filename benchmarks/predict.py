"""How many texts a second `python -m engine.predict` judges, start-up left out, without and with the words that spoke.

    python -m benchmarks.predict --checkpoint RUN/checkpoints/best REVIEWS...

Each round runs the command with one text, with all reviews, and with some of them with --words 3. Reviews are of the
formats that --file takes.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import report
from benchmarks.harness import ROOT
from benchmarks.preprocess import Parser
from benchmarks.report import Target
from engine.predict_inputs import BLOCK_TEXTS
from mr.errors import UsageError

WITH_WORDS = BLOCK_TEXTS
"""texts of a run with words, which takes longer: the first block, whose answers come together"""


def judged(checkpoint: str, words: Sequence[str], limit: int | None = None) -> tuple[int, float]:
    """Answers of a run of the command, and the seconds it took; it is ended after `limit` of them.

    Raises:
        UsageError: it failed.
    """
    command = [sys.executable, "-m", "engine.predict", "--checkpoint", checkpoint, *words]
    began = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        count = 0
        for _ in process.stdout:
            count += 1
            if count == limit:
                break
        seconds = time.perf_counter() - began
        if count == limit:
            process.terminate()
            return count, seconds
        problem = process.stderr.read().decode(errors="replace").strip()
    if process.returncode:
        raise UsageError(problem.splitlines()[-1] if problem else f"engine.predict ended with {process.returncode}")
    return count, seconds


def measure(checkpoint: str, reviews: Sequence[str], rounds: int) -> dict[str, Any]:
    """Medians over the rounds.

    Raises:
        UsageError: the command failed, or there are too few reviews.
    """
    files = [word for path in reviews for word in ("--file", path)]
    starts, all_seconds, seconds_with_words = [], [], []
    texts = 0
    for _ in range(rounds):
        starts.append(judged(checkpoint, ["fine", "--words", "0"])[1])
        texts, seconds = judged(checkpoint, files)
        if texts < WITH_WORDS:
            raise UsageError(f"{texts} reviews are too few to tell a rate; give at least {WITH_WORDS}")
        all_seconds.append(seconds)
        seconds_with_words.append(judged(checkpoint, [*files, "--words", "3"], WITH_WORDS)[1])
    start = median(starts)
    return {
        "texts": texts,
        "start_seconds": round(start, 2),
        "texts_per_second": rate(texts, median(all_seconds) - start),
        "texts_per_second_with_words": rate(WITH_WORDS, median(seconds_with_words) - start),
    }


def rate(texts: int, seconds: float) -> int | None:
    """Texts a second; None where the start took longer than all of it, by a disturbance."""
    return round(texts / seconds) if seconds > 0 else None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns its exit status."""
    parser = Parser(
        prog="python -m benchmarks.predict", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("reviews", nargs="+", metavar="REVIEWS", help=f"files of at least {WITH_WORDS} reviews")
    parser.add_argument("--checkpoint", required=True, metavar="PATH", help="such as RUN/checkpoints/best")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="default: %(default)s")
    parser.add_argument("--result", metavar="PATH", type=Path, help="write the last line's object to this file too")
    try:
        options = parser.parse_args(arguments)
        if options.rounds < 1:
            raise UsageError("--rounds must be at least 1")
        paths = [str(Path(path).resolve()) for path in (options.checkpoint, *options.reviews)]
        found = measure(paths[0], paths[1:], options.rounds)
    except UsageError as error:
        print(f"benchmarks.predict: {error}", file=sys.stderr)
        return 2
    targets = [Target("texts a second", found["texts_per_second"], at_least=2000.0)]
    rows = [(name.replace("_", " "), "-" if value is None else f"{value:,}", "") for name, value in found.items()]
    print(report.table(("", "", ""), rows), *(target.as_line() for target in targets), sep="\n")
    report.finish({**found, **report.verdicts(targets), "machine": report.machine(["torch", "numpy"])}, options.result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
