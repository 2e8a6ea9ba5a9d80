"""Run every benchmark, one after the other.

The last line is one JSON object, {"benchmarks": {name: its object}, "missed": [targets that were not reached]}.
Each one's object is also written to benchmarks/results/NAME.json.
A benchmark that fails is told and does not stop the others; the exit status is then 1. Missed targets are no failure.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks import BENCHMARKS

ROOT = Path(__file__).resolve().parents[1]


def run(name: str) -> dict[str, Any] | None:
    """Run one benchmark and show what it prints; its JSON object, None when it failed."""
    print(f"== {name}", flush=True)
    result = ROOT / "benchmarks" / "results" / f"{name}.json"
    result.parent.mkdir(exist_ok=True)
    command = [sys.executable, "-m", f"benchmarks.{name}", "--result", str(result)]
    last = ""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            last = line
    try:
        found = json.loads(last)
    except ValueError:
        found = None
    if process.returncode or not isinstance(found, dict):
        print(f"{name}: failed with status {process.returncode}", file=sys.stderr, flush=True)
        return None
    return found


def main() -> int:
    """Run the command; returns its exit status: 0 all ran, 1 one failed, 2 wrong usage."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"They are {', '.join(BENCHMARKS)}. Each has options of its own: python -m benchmarks.NAME --help",
    )
    parser.parse_args()
    results = {name: run(name) for name in BENCHMARKS}
    found = {name: result for name, result in results.items() if result is not None}
    missed = [f"{name}: {target}" for name, result in found.items() for target in result.get("missed", [])]
    print(json.dumps({"benchmarks": found, "missed": missed}), flush=True)
    return 0 if len(found) == len(results) else 1


if __name__ == "__main__":
    sys.exit(main())
