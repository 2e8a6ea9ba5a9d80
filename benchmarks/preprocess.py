"""From raw reviews to a finished dataset: how fast `python -m mr` is, side by side with other ways to do it.

    python -m benchmarks.preprocess                                  # about 6 minutes
    python -m benchmarks.preprocess --lines 20000 --rounds 1         # a look
    python -m benchmarks.preprocess --data 'reviews/*.json.gz'       # reviews of your own

Each way is a command of its own, from its start to its end; they take turns round by round, and the figures are medians
over the rounds. MB are millions of bytes of the reviews as plain JSON lines.

ours            python -m mr, local runner, all the cores that this process may use (at most --cores)
bare_loop       the same functions in a few processes without mrjob, to the same dataset: what the machine could do
ours_1_core     python -m mr --cores 1 on one core alone; ours_cores_1: the same, but allowed to use the others, which
                sort does
original        the original's method with mrjob: a record a word, an HDF5 dataset per row, a merge with a chunk per row
                (benchmarks/preprocess_original.py); slow, so it gets --original-lines lines, and what it takes
                for 100 lines, which is its start-up, is taken off its time

Memory and temporary disk of ours are sampled in a run of their own, which is not timed.
"""

from __future__ import annotations

import argparse
import glob
import json
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any, NoReturn

from benchmarks import report
from benchmarks.harness import ROOT, Progress
from benchmarks.preprocess_input import SEED, gathered, generated, sound_slice
from benchmarks.preprocess_watch import Peak, Taken
from benchmarks.preprocess_ways import Bench, Way, all_ways
from benchmarks.report import Target
from mr.errors import UsageError

PACKAGES = ("mrjob", "h5py", "numpy")
_STAGE = re.compile(r"^\[\d+/\d+\] (.+?): (?:.*, )?([\d.hmins ]+)$", re.MULTILINE)
_UNITS = {"h": 3600, "min": 60, "s": 1}


def stage_seconds(told: str) -> dict[str, float]:
    """Seconds per stage of python -m mr.

    Args:
        told: its standard error.
    """
    return {
        title: sum(float(number) * _UNITS[unit] for number, unit in re.findall(r"([\d.]+) (h|min|s)", duration))
        for title, duration in _STAGE.findall(told)
    }


def figures(ways: Sequence[Way], peak: Peak) -> dict[str, Any]:
    """The last line's figures, without targets."""
    found = {way.name: way.as_json() for way in ways}
    runs = {way.name: way.runs for way in ways}
    original = found["original"]
    stages, start = (_original_stages(runs[name]) for name in ("original", "original_start"))
    told = [stage_seconds(run.error) for run in runs["ours"]]
    working = original["seconds"] - found["original_start"]["seconds"]
    without_words = sum(stages[name] - start[name] for name in ("rows", "merge"))
    size = original["bytes"] / 1e6
    return {
        "ours_mb_per_s": found["ours"]["mb_per_s"],
        "original_mb_per_s": round(size / working, 3) if working > 0 else None,
        "original_without_vocabulary_mb_per_s": round(size / without_words, 3) if without_words > 0 else None,
        "bare_loop_mb_per_s": found["bare_loop"]["mb_per_s"],
        "ways": found,
        "ours_stages": {title: round(median(item[title] for item in told), 2) for title in told[0]},
        "original_stages": stages,
        "peak_memory_bytes": peak.memory_bytes,
        "peak_processes": peak.processes,
        "peak_temporary_bytes": peak.disk_bytes,
    }


def _original_stages(runs: Sequence[Taken]) -> dict[str, float]:
    told = [json.loads(run.out.splitlines()[-1]) for run in runs]
    return {name: round(median(item[name] for item in told), 3) for name in told[0]}


def paired(ways: Sequence[Way], over: str, under: str) -> float:
    """The median over the rounds of one way's time over another's: what slows a round slows both."""
    runs = {way.name: way.runs for way in ways}
    return median(one.seconds / other.seconds for one, other in zip(runs[over], runs[under], strict=True))


def judge(found: dict[str, Any], ways: Sequence[Way], cores: int) -> list[Target]:
    """What was aimed at. Scaling is judged with two cores, and told as not judged without them."""
    scaling = paired(ways, "ours_1_core", "ours") if cores == 2 else None
    return [
        Target("ours / original, MB/s", report.ratio(found["ours_mb_per_s"], found["original_mb_per_s"]), at_least=5.0),
        Target("ours / bare_loop, time", paired(ways, "ours", "bare_loop"), at_most=2.0),
        Target("ours_1_core / ours, time", scaling, at_least=1.7),
    ]


def table(found: dict[str, Any]) -> str:
    """The figures for people."""
    heads = ("way", "MB", "seconds", "CPU s", "MB/s", "")
    rows = []
    for name, item in found["ways"].items():
        cells = f"{item['bytes'] / 1e6:,.1f}", f"{item['seconds']:,.2f}", f"{item['cpu_seconds']:,.2f}"
        rows.append((name, *cells, f"{item['mb_per_s']:,.2f}", ""))
    rate, without_words = (found[key] for key in ("original_mb_per_s", "original_without_vocabulary_mb_per_s"))
    told = ["-" if value is None else f"{value:,.2f}" for value in (rate, without_words)]
    stages = (f"{title} {seconds:.1f}" for title, seconds in found["ours_stages"].items())
    return "\n".join(
        [
            report.table(heads, rows),
            "",
            f"original without its start-up: {told[0]} MB/s; without its start-up and its vocabulary: {told[1]}",
            f"ours, seconds of its stages: {', '.join(stages)}; CPU time of ours / bare_loop: {found['cpu_ratio']:.2f}",
            f"ours at its peak: {found['peak_memory_bytes'] / 1e6:,.0f} MB of memory in {found['peak_processes']} "
            f"processes, {found['peak_temporary_bytes'] / 1e6:,.0f} MB of temporary files",
        ]
    )


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; {self.prog} --help explains all options")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the options.

    Raises:
        UsageError: an option is wrong.
    """
    parser = Parser(
        prog="python -m benchmarks.preprocess",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--lines", type=int, default=400_000, help="generated reviews (default: %(default)s)")
    add("--data", metavar="FILE", nargs="+", help="reviews of your own instead, patterns too, in any form mr reads")
    add("--original-lines", type=int, default=20_000, help="lines that the original gets (default: %(default)s)")
    add("--rounds", type=int, default=3, help="turns of each way (default: %(default)s)")
    add("--cores", type=int, default=2, help="that each way may use (default: %(default)s)")
    add(
        "--workdir",
        type=Path,
        default=ROOT / "build" / "bench" / "preprocess",
        help="input and results (default: %(default)s)",
    )
    add("--result", metavar="PATH", type=Path, help="write the last line's object to this file too")
    options = parser.parse_args(arguments)
    for name in ("lines", "original_lines", "rounds", "cores"):
        if getattr(options, name) < 1:
            raise UsageError(f"--{name.replace('_', '-')} {getattr(options, name)}: give a whole number of at least 1")
    return options


def read_input(options: argparse.Namespace, folder: Path) -> Path:
    """The one file that all ways read.

    Raises:
        UsageError: a file is missing or cannot be read.
    """
    if options.data is None:
        return generated(folder, options.lines)
    files = [Path(match) for pattern in options.data for match in sorted(glob.glob(pattern))]
    if not files:
        raise UsageError(f"--data {' '.join(options.data)}: no such file; check the path")
    return gathered(folder, files)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Prepare the input and measure; prints the table, and returns the last line's object.

    Raises:
        UsageError: the input cannot be used.
        OSError, ValueError: a way failed, or made another dataset.
    """
    folder, progress = options.workdir.absolute(), Progress()
    folder.mkdir(parents=True, exist_ok=True)
    cores = set(sorted(os.sched_getaffinity(0))[: options.cores])
    progress.say("preparing the reviews")
    source = read_input(options, folder)
    bench = Bench(folder)
    ways = all_ways(source, sound_slice(source, options.original_lines), folder, cores)
    try:
        for number in range(1, options.rounds + 1):
            progress.say(f"round {number} of {options.rounds}")
            for way in ways:
                progress.detail(f"round {number} of {options.rounds}: {way.name}")
                bench.run(way)
        progress.say("memory and disk of ours")
        peak = bench.peak(ways[0])
    finally:
        progress.done()
        bench.clear()
    found = figures(ways, peak)
    found["cpu_ratio"] = round(found["ways"]["ours"]["cpu_seconds"] / found["ways"]["bare_loop"]["cpu_seconds"], 3)
    print(table(found), end="\n\n")
    judged = judge(found, ways, len(cores))
    print("targets:", *(target.as_line() for target in judged), sep="\n")
    settings = {"data": "own" if options.data else "generated", "seed": None if options.data else SEED}
    lines = {way.name: _lines(way.source) for way in ways}
    settings |= {"lines": lines["ours"], "original_lines": lines["original"], "rounds": options.rounds}
    settings |= {"cores": len(cores), "dataset_digest": bench.digest}
    return found | report.verdicts(judged) | {"settings": settings, "machine": report.machine(PACKAGES)}


def _lines(path: Path) -> int:
    with path.open("rb") as stream:
        return sum(1 for _ in stream)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status: 0 done (targets met or not), 1 failed, 2 wrong usage."""
    try:
        options = parse(arguments)
        report.finish(measure(options), options.result)
    except UsageError as error:
        print(f"benchmarks.preprocess: {error}", file=sys.stderr)
        return 2
    except (OSError, ValueError) as error:
        print(f"benchmarks.preprocess: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
