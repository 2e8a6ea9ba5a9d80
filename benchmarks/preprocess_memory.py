"""How much memory and temporary disk `python -m mr` takes for many short reviews, with each runner of this machine.

    python -m benchmarks.preprocess_memory                    # 10 million reviews: a quarter of an hour, 10 GB of disk
    python -m benchmarks.preprocess_memory --lines 100000     # a look

The command and all its processes are looked at ten times a second: memory is the sum of their proportional set sizes,
where what several share counts once. The reviews are those of benchmarks.preprocess with a median of 12 words.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.harness import ROOT, Progress
from benchmarks.preprocess import Parser
from benchmarks.preprocess_input import SEED, generated
from benchmarks.preprocess_watch import watched
from benchmarks.report import Target
from mr.errors import UsageError

MEDIAN_LENGTH = 12
"""words"""
RUNNERS = ("local", "inline")
MOST_BYTES = 1e9
"""of memory that are aimed at"""


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the options.

    Raises:
        UsageError: an option is wrong.
    """
    parser = Parser(
        prog="python -m benchmarks.preprocess_memory",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--lines", type=int, default=10_000_000, help="generated reviews (default: %(default)s)")
    add("--cores", type=int, default=2, help="of the local runner (default: %(default)s)")
    add("--runner", choices=RUNNERS, help="this one alone (default: each)")
    add(
        "--workdir",
        type=Path,
        default=ROOT / "build" / "bench" / "preprocess",
        help="input, which is kept, and results (default: %(default)s)",
    )
    add("--result", metavar="PATH", type=Path, help="write the last line's object to this file too")
    options = parser.parse_args(arguments)
    for name in ("lines", "cores"):
        if getattr(options, name) < 1:
            raise UsageError(f"--{name} {getattr(options, name)}: give a whole number of at least 1")
    return options


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Prepare the input and measure; prints the table, and returns the last line's object.

    Raises:
        OSError: a run failed.
    """
    folder, progress = options.workdir.absolute(), Progress()
    folder.mkdir(parents=True, exist_ok=True)
    progress.say("preparing the reviews")
    source = generated(folder, options.lines, SEED, MEDIAN_LENGTH)
    size, run = source.stat().st_size, folder / "memory-run"
    print(f"{options.lines:,} reviews, {size / 1e6:,.0f} MB", flush=True)
    cores = set(sorted(os.sched_getaffinity(0))[: options.cores])
    found: dict[str, dict[str, Any]] = {}
    try:
        for runner in (options.runner,) if options.runner else RUNNERS:
            progress.say(f"python -m mr -r {runner}")
            shutil.rmtree(run, ignore_errors=True)
            run.mkdir()
            command = [sys.executable, "-m", "mr", str(source), "--out", str(run / "result"), "-r", runner]
            command += ["--cores", str(options.cores)]
            began = time.perf_counter()
            peak = watched(command, run, run / "result", cores=cores, log=folder / f"memory-{runner}")
            seconds = time.perf_counter() - began
            found[runner] = {**peak.__dict__, "seconds": round(seconds, 1)}
            print(_line(runner, found[runner]), flush=True)
    finally:
        progress.done()
        shutil.rmtree(run, ignore_errors=True)
    judged = [
        Target(f"{runner}, bytes of memory", item["memory_bytes"], at_most=MOST_BYTES) for runner, item in found.items()
    ]
    print("\ntargets:", *(target.as_line() for target in judged), sep="\n")
    settings = {
        "lines": options.lines,
        "bytes": size,
        "median_length": MEDIAN_LENGTH,
        "seed": SEED,
        "cores": len(cores),
    }
    return {"runners": found} | report.verdicts(judged) | {"settings": settings, "machine": report.machine(("mrjob",))}


def _line(runner: str, found: dict[str, Any]) -> str:
    memory, disk = found["memory_bytes"] / 1e6, found["disk_bytes"] / 1e6
    return (
        f"-r {runner:<8}{memory:,.0f} MB of memory at its peak, in {found['processes']} processes at most, "
        f"{disk:,.0f} MB of temporary files, {found['seconds']:,.0f} s"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status: 0 done (targets met or not), 1 failed, 2 wrong usage."""
    try:
        options = parse(arguments)
        report.finish(measure(options), options.result)
    except UsageError as error:
        print(f"benchmarks.preprocess_memory: {error}", file=sys.stderr)
        return 2
    except (OSError, ValueError) as error:
        print(f"benchmarks.preprocess_memory: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
