"""What each part of the model and of its training brings: each changed alone, three seeds, on the validation split.

    python -m benchmarks.parts REVIEWS... --out FOLDER --result benchmarks/results/parts.json     # 90 minutes

Makes datasets of the reviews, trains today's defaults with a smaller network, and the same with one option changed,
--jobs trainings at once with a core each. Training does not hang on the number of ranks, so that one rank does. What is
done is kept in FOLDER, and the same command goes on from there. With --add only the changes that the result file lacks
are trained. The test split is not opened.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from benchmarks import report
from benchmarks.harness import ROOT, THREADS
from benchmarks.preprocess import Parser
from benchmarks.report import Target
from engine.sweep_space import Trial
from engine.sweep_table import Outcome, read_outcome
from mr.errors import UsageError

BASE = ("--hidden-size", "64", "--epochs", "3", "--threads", "1", "--view", "none", "--log-seconds", "0")
"""of all trainings"""
FIRST_SEED = 7
MARGIN = 0.003
"""of macro-F1: what three seeds cannot tell apart"""


@dataclass(frozen=True)
class Part:
    """One change to the defaults."""

    name: str
    options: tuple[str, ...] = ()
    """of engine.train"""
    data: tuple[str, ...] = ()
    """of mr"""


PARTS = (
    Part("the defaults, 64 units"),
    Part("network alone, no words and pairs", ("--ngrams", "0")),
    Part("words, pairs and triples", ("--ngrams", "3")),
    Part("word vectors begin at random", ("--word-vectors", "random")),
    Part("a mean instead of attention", ("--pooling", "mean")),
    Part("a maximum instead of attention", ("--pooling", "max")),
    Part("forwards alone", ("--directions", "1")),
    Part("a fifth of the weights between states left out", ("--recurrent-dropout", "0.2")),
    Part("GRU cells", ("--cell", "gru")),
    Part("two layers", ("--layers", "2")),
    Part("no class weights", ("--class-weights", "none")),
    Part("class weights balanced in full", ("--class-weights", "balanced")),
    Part("cross-entropy of two scores", ("--loss", "cross_entropy")),
    Part("mean squared error", ("--loss", "mse")),
    Part("no averaging", ("--average-decay", "0")),
    Part("no averaging, rate falls on a line", ("--average-decay", "0", "--schedule", "linear")),
    Part("rate 0.002", ("--learning-rate", "0.002")),
    Part("stop words left out", data=("--stop-words", "english")),
    Part("30,000 words", data=("--vocab-size", "30000")),
    Part("reviews of up to 512 words", data=("--max-length", "512")),
)


def run(command: Sequence[str], folder: Path) -> None:
    """Run a command of the project; what it says goes to a file beside its folder.

    Raises:
        UsageError: it failed.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    log = folder.with_name(folder.name + ".log")
    with log.open("w") as out:
        environment = os.environ | dict.fromkeys(THREADS, "1")
        done = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, env=environment, stdout=out, stderr=out)
    if done.returncode:
        last = (log.read_text().splitlines() or ["without a word"])[-1]
        raise UsageError(f"{command[0]} ended with status {done.returncode} ({last}); all it said is in {log}")


def make_dataset(reviews: Sequence[str], part: Part, out: Path) -> Path:
    """The dataset of a part; one that is there already is left as it is.

    Raises:
        UsageError: it cannot be made.
    """
    folder = out / "data" / (_named(part.data) or "default")
    run(["mr", *reviews, "--out", str(folder), *part.data], folder)
    return folder


def train(part: Part, seed: int, data: Path, out: Path) -> Outcome:
    """Train to the end; a training that is done already is left as it is.

    Raises:
        UsageError: it failed.
    """
    folder = out / "trials" / _named([*part.data, *part.options, "--seed", str(seed)])
    options = [*BASE, *part.options, "--seed", str(seed)]
    run(["engine.train", "--data", str(data), "--out", str(folder), *options], folder)
    return read_outcome(Trial(0, (), seed), folder)


def _named(options: Sequence[str]) -> str:
    """A name for a folder."""
    return "_".join(options).replace("--", "")


def summary(part: Part, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """The figures of a part over its seeds."""
    scores = [outcome.macro_f1 for outcome in outcomes if outcome.macro_f1 is not None]
    return {
        "name": part.name,
        "options": [*part.options, *part.data],
        "macro_f1": fmean(scores),
        "macro_f1_deviation": stdev(scores) if len(scores) > 1 else None,
        "accuracy": fmean(outcome.accuracy for outcome in outcomes if outcome.accuracy is not None),
        "best_epoch": fmean(outcome.epoch for outcome in outcomes),
        "seconds": fmean(outcome.seconds for outcome in outcomes),
        "each": [[outcome.trial.seed, outcome.macro_f1] for outcome in outcomes],
    }


def measure(reviews: Sequence[str], out: Path, parts: Sequence[Part], seeds: int, jobs: int) -> list[dict[str, Any]]:
    """Train all parts with all seeds, `jobs` at once.

    Raises:
        UsageError: a dataset cannot be made, or a training failed.
    """
    data = {part: make_dataset(reviews, part, out) for part in parts}
    todo = [(part, seed) for seed in range(FIRST_SEED, FIRST_SEED + seeds) for part in parts]
    done: dict[Part, list[Outcome]] = {part: [] for part in parts}
    began = time.monotonic()
    with ThreadPoolExecutor(jobs) as pool:
        running = [(part, pool.submit(train, part, seed, data[part], out)) for part, seed in todo]
        try:
            for number, (part, result) in enumerate(running, 1):
                done[part].append(result.result())
                minutes = (time.monotonic() - began) / 60
                print(f"{number} of {len(todo)} trainings, {minutes:.0f} minutes: {part.name}", file=sys.stderr)
        except UsageError:
            pool.shutdown(cancel_futures=True)
            raise
    return [summary(part, outcomes) for part, outcomes in done.items()]


def known(path: Path | None, seeds: int) -> list[dict[str, Any]]:
    """What a result file has of today's parts.

    Raises:
        UsageError: there is no such file, or its trainings were others.
    """
    if path is None:
        raise UsageError("--add: --result must name the file that is to be added to")
    try:
        result = json.loads(path.read_bytes())
        if (result["base"], result["seeds"]) != (list(BASE), seeds):
            raise UsageError(f"{path}: made with other options or another number of seeds; leave --add out")
        options = {part.name: [*part.options, *part.data] for part in PARTS}
        return [one for one in result["parts"] if options.get(one["name"]) == one["options"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path}: cannot be added to ({error}); leave --add out") from None


def table(found: Sequence[dict[str, Any]]) -> str:
    """The figures for people, the best first."""
    rows = []
    for one in sorted(found, key=lambda one: -one["macro_f1"]):
        spread = "" if one["macro_f1_deviation"] is None else f"{one['macro_f1_deviation']:.4f}"
        more = f"{one['macro_f1'] - found[0]['macro_f1']:+.4f}"
        shown = f"{one['macro_f1']:.4f}", spread, more, f"{one['accuracy']:.4f}", f"{one['seconds']:.0f}"
        rows.append((one["name"], *shown, " ".join(one["options"])))
    return report.table(("", "macro-F1", "+-", "change", "accuracy", "seconds", "options"), rows)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns its exit status."""
    parser = Parser(
        prog="python -m benchmarks.parts", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("reviews", nargs="+", metavar="REVIEWS", help="files of reviews, as python -m mr takes them")
    parser.add_argument("--out", required=True, type=Path, metavar="FOLDER", help="datasets, trainings and their logs")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="trainings of each (default: 3)")
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("--jobs", type=int, default=cores, metavar="N", help=f"trainings at once (default: {cores})")
    parser.add_argument("--result", metavar="PATH", type=Path, help="write the last line's object to this file too")
    parser.add_argument("--add", action="store_true", help="train only the changes that this file lacks, and add them")
    try:
        options = parser.parse_args(arguments)
        if options.seeds < 1 or options.jobs < 1:
            raise UsageError("--seeds and --jobs must be at least 1")
        reviews = [str(Path(path).resolve()) for path in options.reviews]
        there = known(options.result, options.seeds) if options.add else []
        missing = [part for part in PARTS if part.name not in {one["name"] for one in there}]
        found = there + measure(reviews, options.out.resolve(), missing, options.seeds, options.jobs)
        order = [part.name for part in PARTS]
        found.sort(key=lambda one: order.index(one["name"]))
    except UsageError as error:
        print(f"benchmarks.parts: {error}", file=sys.stderr)
        return 2
    best = max(one["macro_f1"] for one in found)
    targets = [Target("best change - defaults, macro-F1", best - found[0]["macro_f1"], at_most=MARGIN)]
    print(table(found), *(target.as_line() for target in targets), sep="\n")
    about = {"parts": found, "base": list(BASE), "seeds": options.seeds, "machine": report.machine(["torch", "numpy"])}
    report.finish({**about, **report.verdicts(targets)}, options.result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
