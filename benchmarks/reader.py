"""The reader's speed on one core, beside memcpy of finished batches and beside other ways to load random batches.

    python -m benchmarks.reader                                # 5 minutes, the first time more: formats are written
    python -m benchmarks.reader --quick                        # a look
    python -m benchmarks.reader --only memcpy_int64,ours_lz4

Rows of 89 to 100 token ids padded to 100, random batches of 1,024 as int64 (ours: int32, which torch's Embedding
takes as it is, and half the bytes to write), a warm page cache. Each method reads a format of its own, made from the
same rows, in a process of its own on one core (ours has a reading thread beside the main one on it); they take turns.
The rates are medians over the rounds. "read() bytes a row" is what a method took through read calls: 0 means memory
maps, or rows that stay in memory. The permutation of rows is drawn before the clock runs where a method is told its
rows; loaders that shuffle by themselves, ours among them, do it on the clock.
"checksum_part" is the part of reading that verifying takes, XXH3 of stored chunks, where each is decoded.
Two million rows fit the reader's cache (two shuffle windows): ours decodes each chunk once, before the clock runs, and
then copies rows from memory; ours_lz4_20m, ten times larger, decodes every chunk in every epoch.

Hugging Face datasets, MosaicML Streaming and FFCV are extras; a method without its package is skipped and told. They
do not get along with this project's pinned packages, so they have an environment of their own (7 GB with a CUDA build
of torch), which is used where this one lacks a package:

    python -m venv build/bench-venv
    build/bench-venv/bin/python -m pip install -r benchmarks/requirements.txt
    apt-get install libopencv-dev libturbojpeg0-dev pkg-config                       # FFCV compiles itself
    build/bench-venv/bin/python -m pip install -r benchmarks/requirements-ffcv.txt
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from benchmarks import report
from benchmarks.harness import ROOT, Figures, Method, Progress, Skipped, call, take_turns
from benchmarks.report import Target, ratio, rounded
from benchmarks.rows import Work, source

SEED = 7
EXTRA = (
    "build/bench-venv/bin/python -m pip install -r benchmarks/requirements.txt (see python -m benchmarks.reader --help)"
)
FFCV = EXTRA.replace("requirements", "requirements-ffcv", 1)
SMALL_BATCH = 128
TIMES_LARGER = 10
"""rows of ours_lz4_20m, with 2 million --rows"""
ONCE = ("open_100m", "seek_100m", "cold", "checksum_part")
"""what is measured once, after the rounds"""
NOT_QUICK = ("ours_lz4_20m", "open_100m", "seek_100m")


class UsageError(Exception):
    """Wrong options; the message names the option."""


def methods(options: argparse.Namespace) -> list[Method]:
    """All methods, in the order of the table."""

    def make(name: str, function: str, *packages: str, install: str = "", scale: int = 1, batch: int = 0) -> Method:
        rows = options.rows * scale
        arguments = {"folder": str(options.workdir / str(rows)), "rows": rows, "seed": SEED}
        arguments["batch_size"] = batch or options.batch_size
        return Method(name, f"benchmarks.{function}", arguments, packages, install)

    return [
        make("memcpy_int64", "ours:memcpy_int64"),
        make("memcpy_int32", "ours:memcpy_int32"),
        make("ours_lz4", "ours:lz4"),
        make("ours_uncompressed", "ours:uncompressed"),
        make("ours_lz4_batch_128", "ours:lz4", batch=min(SMALL_BATCH, options.batch_size)),
        make("ours_lz4_20m", "ours:lz4", scale=TIMES_LARGER),
        make("numpy_memmap", "competitors:numpy_memmap", "numpy"),
        make("torch_memmap_dataloader", "competitors:torch_memmap_dataloader", "torch", "numpy"),
        make("h5py_fancy", "competitors:h5py_fancy", "h5py"),
        make("h5py_rows_held_dataloader", "competitors:h5py_rows_held_dataloader", "h5py", "torch"),
        make("h5py_rows_dataloader", "competitors:h5py_rows_dataloader", "h5py", "torch"),
        make("hf_datasets", "competitors:hf_datasets", "datasets", "pyarrow", install=EXTRA),
        make("hf_datasets_dataloader", "competitors:hf_datasets_dataloader", "datasets", "torch", install=EXTRA),
        make("mosaicml_streaming", "competitors:mosaicml_streaming", "mosaicml-streaming", "torch", install=EXTRA),
        make("ffcv", "competitors:ffcv", "ffcv", "numba", "torch", install=FFCV),
    ]


def targets(rates: dict[str, float], once: dict[str, dict[str, Any]]) -> list[Target]:
    """What the reader is to reach."""

    def times(name: str, other: str, **bound: float) -> Target:
        return Target(f"{name} / {other}", ratio(rates.get(name), rates.get(other)), **bound)

    opened, seek = once.get("open_100m", {}), once.get("seek_100m", {})
    return [
        times("ours_lz4", "memcpy_int64", at_least=0.6, aim=0.8),
        times("ours_lz4", "ffcv", at_least=6),
        times("ours_lz4", "numpy_memmap", at_least=1.3),
        times("ours_lz4", "hf_datasets", at_least=60),
        times("ours_lz4", "mosaicml_streaming", at_least=300),
        times("ours_lz4", "h5py_rows_dataloader", at_least=900),
        times("ours_uncompressed", "ours_lz4", at_most=1.4),
        times("ours_lz4_batch_128", "ours_lz4", at_least=0.7),
        times("ours_lz4_20m", "ours_lz4", at_least=0.85),
        Target("open_100m seconds", opened.get("seconds"), at_most=1.0),
        Target("open_100m megabytes", opened.get("megabytes"), at_most=100),
        Target("checksum_part", once.get("checksum_part", {}).get("part"), at_most=0.05),
        Target("seek_100m milliseconds", seek.get("milliseconds"), at_most=10),
    ]


def measure_once(options: argparse.Namespace, progress: Progress) -> tuple[dict[str, Any], dict[str, str]]:
    """The measurements that take no turns: their figures, and the reasons of those that have none."""
    found: dict[str, Any] = {}
    skipped: dict[str, str] = {}
    work = {"folder": str(options.workdir / str(options.rows)), "rows": options.rows, "batch_size": options.batch_size}
    for name in (name for name in ONCE if name in options.only):
        progress.say(f"measuring {name}")
        try:
            if name in ("cold", "checksum_part"):
                function = "cold:cold" if name == "cold" else "checksum:checksum"
                found[name] = call(f"benchmarks.{function}", work | {"seed": SEED})
                continue
            folder = call("benchmarks.large:prepare", {"folder": str(options.workdir), "seed": SEED})
            seed = {"seed": SEED} if name == "seek_100m" else {}
            function = "seeking" if name == "seek_100m" else "opening"
            found[name] = call(f"benchmarks.large:{function}", folder | seed)
        except Skipped as reason:
            skipped[name] = str(reason)
    progress.done()
    return found, skipped


def describe(figures: dict[str, Figures], limit: float | None) -> dict[str, dict[str, Any]]:
    """The JSON object of each method."""
    return {
        name: {
            "rows_per_second": round(found.rate),
            "min": round(min(found.rates)),
            "max": round(max(found.rates)),
            "times_memcpy_int64": rounded(ratio(found.rate, limit), 5),
            "read_bytes_per_row": rounded(found.bytes_per_unit, 1),
            "versions": dict(found.versions),
        }
        for name, found in figures.items()
    }


def show(names: Sequence[str], result: dict[str, Any]) -> None:
    """Print the table."""
    rows: list[Sequence[str]] = []
    for name in names:
        if name in result["skipped"]:
            rows.append((name, "-", "-", "-", "-", "-", f"skipped: {result['skipped'][name]}"))
            continue
        found = result[name]
        share, read = found["times_memcpy_int64"], found["read_bytes_per_row"]
        packages = ", ".join(f"{key} {value}" for key, value in found["versions"].items() if key != "python")
        numbers = [f"{found[key]:,}" for key in ("rows_per_second", "min", "max")]
        shown = ["-" if share is None else f"{share:.4f}", "-" if read is None else f"{read:,.0f}"]
        rows.append((name, *numbers, *shown, packages))
    heads = ("method", "rows/s", "min", "max", "x memcpy_int64", "read() bytes a row", "")
    print(report.table(heads, rows), end="\n\n")


def show_once(once: dict[str, dict[str, Any]], skipped: dict[str, str]) -> None:
    """Print what was measured once."""
    for name in ONCE:
        if name in skipped:
            print(f"{name}: skipped: {skipped[name]}")
        elif name in once:
            print(f"{name}: " + ", ".join(f"{key} {value:,.4g}" for key, value in once[name].items()))
    if once.get("cold", {}).get("from_disk", 1) < 0.5:
        print("cold: most came out of the page cache all the same, so this says nothing about a disk")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; python -m benchmarks.reader --help explains all options")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options, checked and complete.

    Raises:
        UsageError: one does not fit.
    """
    parser = _Parser(
        prog="python -m benchmarks.reader",
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--rows", type=int, help="rows of the dataset (default: 2000000; --quick: 200000)")
    add("--batch-size", type=int, default=1024, help="rows of a batch (default: %(default)s)")
    add("--rounds", type=int, help="turns of each method (default: 8; --quick: 3)")
    add("--seconds", type=float, help="length of a turn (default: 1; --quick: 0.3)")
    add("--only", metavar="NAME,..", help="measure only these (default: all)")
    add(
        "--workdir", type=Path, default=ROOT / "build" / "bench" / "reader", help="formats, 7 GB (default: %(default)s)"
    )
    add("--quick", action="store_true", help=f"fewer rows and rounds, and without {', '.join(NOT_QUICK)}")
    add("--result", metavar="PATH", type=Path, help="write the last line's object to this file too")
    options = parser.parse_args(arguments)
    for name, usual, quick in (("rows", 2_000_000, 200_000), ("rounds", 8, 3), ("seconds", 1.0, 0.3)):
        if getattr(options, name) is None:
            setattr(options, name, quick if options.quick else usual)
    _check(options)
    return options


def _check(options: argparse.Namespace) -> None:
    for name in ("rows", "batch_size", "rounds", "seconds"):
        if not getattr(options, name) > 0:
            raise UsageError(f"--{name.replace('_', '-')} {getattr(options, name)}: give a number above 0")
    if options.rows < options.batch_size:
        raise UsageError(f"--rows {options.rows}: give at least one batch of {options.batch_size}")
    options.workdir = options.workdir.absolute()
    known = [method.name for method in methods(options)] + list(ONCE)
    wanted = options.only.split(",") if options.only else known
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise UsageError(f"--only {unknown[0]}: no such measurement; there are {', '.join(known)}")
    options.only = [name for name in wanted if not (options.quick and not options.only and name in NOT_QUICK)]
    if options.result is not None and not options.result.absolute().parent.is_dir():
        raise UsageError(f"--result {options.result}: there is no folder {options.result.parent}; make it first")


def measure(options: argparse.Namespace) -> None:
    """Measure and tell."""
    progress = Progress()
    chosen = [method for method in methods(options) if method.name in options.only]
    if chosen:
        progress.say("preparing the rows")
        source(Work(options.workdir / str(options.rows), options.rows, options.batch_size, SEED))
    figures, skipped = take_turns(chosen, options.rounds, options.seconds, progress)
    once, others = measure_once(options, progress)
    skipped |= others
    if options.quick:
        skipped |= {name: "left out by --quick" for name in NOT_QUICK if name not in options.only}
    limit = figures["memcpy_int64"].rate if "memcpy_int64" in figures else None
    result = describe(figures, limit) | once | {"skipped": skipped}
    judged = targets({name: found.rate for name, found in figures.items()}, once)
    result |= report.verdicts(judged)
    result["machine"] = report.machine(("numpy", "h5py", "hdf5plugin", "xxhash", "torch", "uneven-engine"))
    result["settings"] = {name: getattr(options, name) for name in ("rows", "batch_size", "rounds", "seconds")}
    show([method.name for method in chosen], result)
    show_once(once, skipped)
    print("targets:", *(target.as_line() for target in judged), sep="\n")
    report.finish(result, options.result)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status: 0 done (targets met or not), 1 failed, 2 wrong usage."""
    try:
        measure(parse(arguments))
    except UsageError as error:
        print(f"benchmarks.reader: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"benchmarks.reader: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("benchmarks.reader: interrupted; formats that are finished will be used again", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
