"""How near the job comes to what its ranks can do: efficiency E of balanced training, side by side with other methods.

    python -m benchmarks.balance            # about 20 minutes
    python -m benchmarks.balance --quick    # one local setting, about a minute

E is the job's rows per second over the sum of the ranks' own rates, each at its best local batch, all busy at the
same time, with nothing exchanged: measured by processes that have not started Horovod, between the job's rounds,
while the job is stopped. In the job all methods take turns (benchmarks.balance_methods). Ranks stay on one core each,
with CPU quotas for the speed ratios, on this machine or on the lab's hosts (tests/cluster/lab), whose network has a
rate of 1 Gbit/s.

    E = batch size x balance x exposure     (benchmarks.balance_figures says what each is)

Settings are named RATIO/NETWORK/BATCH, e.g. 1:1.78/1gbit/512; "varying": rows of 32, 64 and 100 words; "reaction": a
rank becomes three times slower in mid-epoch. What this machine cannot do (no root, no sshd) is skipped and said so.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import balance_settings, report
from benchmarks.balance_figures import targets
from benchmarks.balance_run import measure
from benchmarks.balance_settings import METHODS, Setting
from benchmarks.balance_work import TEXT
from benchmarks.harness import ROOT, Skipped

COLUMNS = ("rows_per_second", "E", "batch_size", "balance", "exposure", "mean_over_max", "mean_over_max_p10")
HEADS = ("setting", "method", "rows/s", "E", "batch size", "balance", "exposure", "mean/max", "10th pct", "")


def lines(found: dict[str, Any]) -> list[tuple[str, ...]]:
    """The table's lines of one setting."""
    rows = []
    for name, figures in found.get("methods", {}).items():
        cells = [figures.get(column) for column in COLUMNS]
        shown = ["-" if cell is None else f"{cell:,.0f}" if cell > 10 else f"{cell:.3f}" for cell in cells]
        shares = "" if "shares" not in figures else ":".join(f"{share:.0f}" for share in figures["shares"])
        rows.append((found["name"], name, *shown, shares))
    return rows


def options_of(words: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.balance", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--settings", metavar="A,B,..", help="which ones, by their names or parts of them (local, 1:4.8, /512)"
    )
    parser.add_argument("--list", action="store_true", help="name the settings and end")
    parser.add_argument("--methods", metavar="A,B,..", default=",".join(METHODS), help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=2, help="turns of each method that count (default: %(default)s)")
    parser.add_argument("--steps", type=int, help="steps of a turn (default: 20 with B = 512, 8 with B = 2048)")
    parser.add_argument("--seconds", type=float, default=0.7, help="of a rate measured alone (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="one setting: 1:1.78/local/512")
    parser.add_argument("--workdir", type=Path, default=ROOT / "build" / "bench" / "balance", help="%(default)s")
    parser.add_argument("--result", metavar="PATH", type=Path, help="write the last line's object to this file too")
    options = parser.parse_args(words)
    try:
        options.chosen = balance_settings.choose("1:1.78/local/512" if options.quick else options.settings)
    except ValueError as error:
        parser.error(str(error))
    options.methods = options.methods.split(",")
    if set(options.methods) - set(METHODS) or options.rounds < 1 or (options.steps or 4) < 4:
        parser.error(f"--methods are among {', '.join(METHODS)}, --rounds at least 1 and --steps at least 4")
    return options


def attempt(setting: Setting, options: argparse.Namespace) -> dict[str, Any]:
    """Measure a setting; without its figures, but with the reason, where that is impossible."""
    try:
        with tempfile.TemporaryDirectory(prefix="balance-") as scratch:
            return measure(setting, options, Path(scratch))
    except Skipped as why:
        print(f"{setting.name}: skipped: {why}", flush=True)
        return setting.as_json() | {"skipped": str(why)}
    except (OSError, RuntimeError) as error:
        print(f"{setting.name}: failed: {error}", file=sys.stderr, flush=True)
        return setting.as_json() | {"failed": str(error)}


def main() -> int:
    """Run the command; returns its exit status: 0 done (targets met or not), 1 a setting failed, 130 interrupted."""
    options = options_of(None)
    if options.list:
        print(*(setting.name for setting in options.chosen), sep="\n")
        return 0
    # A plain kill must take the lab and the control groups down too.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    found = []
    rows: list[tuple[str, ...]] = []
    interrupted = False
    try:
        for number, setting in enumerate(options.chosen, 1):
            print(f"[{number}/{len(options.chosen)}] {setting.name}", flush=True)
            found.append(attempt(setting, options))
            rows += lines(found[-1])
    except KeyboardInterrupt:
        print("benchmarks.balance: interrupted; what was measured until then:", file=sys.stderr)
        interrupted = True
    print(f"\n{TEXT}\n", report.table(HEADS, rows), sep="\n", end="\n\n")
    judged = targets(found)
    print("targets:", *(target.as_line() for target in judged), sep="\n")
    result = {"settings": found, "workload": TEXT, "interrupted": interrupted} | report.verdicts(judged)
    report.finish(result | {"machine": report.machine(("numpy", "torch", "horovod"))}, options.result)
    if interrupted:
        return 130
    return 1 if any("failed" in setting for setting in found) else 0


if __name__ == "__main__":
    sys.exit(main())
