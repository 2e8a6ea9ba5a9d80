"""Mutated files against the reader: nothing may crash, hang, raise anything but its own errors, or read wrong rows.

    python -m tests.fuzz --count 200000 --seed 0       # every truncation, then so many mutations
    python -m tests.fuzz --case 4711 --seed 0          # one case again, and what came of it
    bash tests/fuzz/sanitized.sh --count 200000        # the same with AddressSanitizer and UBSan in the native modules

Each case is a function of the seed and its number (tests/fuzz/cases.py); what is right is decided by slow twins
(tests/fuzz/oracle.py). Workers run in processes of their own: one that dies or stops answering is replaced, and the
case that it was at is counted and named. Exit status 0 when nothing failed, 1 otherwise.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
from pathlib import Path

from tests.fuzz.campaign import Campaign, Result, Task, work
from tests.fuzz.cases import Cases
from tests.fuzz.material import make_material
from tests.fuzz.subject import FAILURES, OUTCOMES, Subject, memory_folder

SHOWN = 20
"""failures that are told in full"""


def table(result: Result) -> str:
    """The counts, a line for each kind."""
    rows = [*((kind, counts) for kind, counts in result.counts.items() if counts), ("all", result.totals)]
    width = max(len(kind) for kind, _ in rows)
    lines = [" " * width + "".join(f"{outcome:>14}" for outcome in OUTCOMES)]
    for kind, counts in rows:
        lines.append(kind.ljust(width) + "".join(f"{counts[outcome] or '-':>14}" for outcome in OUTCOMES))
    return "\n".join(lines)


def report(result: Result, path: Path | None) -> None:
    """Print the table, the failures, and one JSON object on the last line."""
    print(table(result), end="\n\n")
    for failure in result.failures[:SHOWN]:
        print(f"{failure['outcome']}: case {failure['case']} ({failure['kind']}): {failure['text']}")
    found = result.as_json()
    print(
        f"{found['cases']:,} cases, {found['truncations']:,} of them truncations, {found['per_second']:,.0f} a second: "
        f"{result.failed} failures{', and it gave up' if result.gave_up else ''}"
    )
    if path is not None:
        path.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found), flush=True)


def again(seed: int, number: int) -> int:
    """Run one case in this process and say what came of it."""
    folder = memory_folder()
    try:
        material = make_material(folder)
        cases = Cases(material, seed)
        case = cases.case(number)
        print(f"{cases.kind(number)}, {case.dataset}:", flush=True)
        for path, data in case.files.items():
            print(f"  {path}: {'removed' if data is None else f'{len(data)} bytes'}", flush=True)
        outcome, text = Subject(material, folder).attempt(case, number)
        print(f"{outcome}: {text}")
    finally:
        shutil.rmtree(folder)
    return int(outcome in FAILURES)


def main(arguments: list[str] | None = None) -> int:
    """Run the campaign; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--count", type=int, default=20_000, help="mutations (default: %(default)s)")
    add("--seed", type=int, default=0, help="of the mutations (default: %(default)s)")
    add("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="workers (default: one a core)")
    add("--every", type=int, default=1, metavar="N", help="take every N-th truncation (default: %(default)s)")
    add("--seconds", type=float, default=60, help="a case that takes longer hangs (default: %(default)s)")
    add("--case", type=int, metavar="NUMBER", help="run this case alone, here")
    add("--result", type=Path, metavar="PATH", help="write the last line's object to this file too")
    add("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.worker:
        work(Task(**json.loads(options.worker)))
        return 0
    if options.case is not None:
        return again(options.seed, options.case)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    names = ("seed", "count", "jobs", "every", "seconds")
    try:
        result = Campaign(**{name: getattr(options, name) for name in names}).run()
    except KeyboardInterrupt:
        print("tests.fuzz: interrupted", file=sys.stderr)
        return 130
    report(result, options.result)
    return int(result.failed > 0)


if __name__ == "__main__":
    sys.exit(main())
