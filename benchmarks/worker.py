"""A worker subprocess of a benchmark, started by benchmarks.harness; only the standard library.

Its one argument is a JSON object {"function": "module:name", "arguments": {...}, "core": n or null, "turns": bool,
"packages": [...]}. Answers are lines of JSON on standard output; whatever libraries print goes to standard error.

With turns the function is a generator that yields units of work done. The worker answers {"versions": ...} after the
first of them, and then each line on standard input, a number of seconds, with {"units", "seconds", "bytes_read"} of a
turn of that length. Without turns the function returns one dictionary, which is the answer.
An exception is answered with {"error": "..."}.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from importlib import metadata
from typing import Any

PR_SET_PDEATHSIG = 1


def bytes_read() -> int | None:
    """Bytes that this process has taken through read calls so far, cached or not; None where Linux does not tell."""
    try:
        with open("/proc/self/io") as stream:
            return int(dict(line.split(": ") for line in stream)["rchar"])
    except (OSError, KeyError, ValueError):
        return None


def one_turn(work: Iterator[int], seconds: float) -> dict[str, Any]:
    """Work for about so long: at least one step of the generator."""
    units, before = 0, bytes_read()
    start = now = time.perf_counter()
    while now < start + seconds:
        units += next(work)
        now = time.perf_counter()
    after = bytes_read()
    taken = None if before is None or after is None else after - before
    return {"units": units, "seconds": now - start, "bytes_read": taken}


def serve(function: Callable[..., Any], task: dict[str, Any], answer: Callable[[dict[str, Any]], None]) -> None:
    """Do what the task says, and answer."""
    if not task["turns"]:
        answer(function(**task["arguments"]))
        return
    work = function(**task["arguments"])
    next(work)
    versions = {"python": sys.version.split()[0]} | {name: metadata.version(name) for name in task["packages"]}
    answer({"versions": versions})
    for line in sys.stdin:
        answer(one_turn(work, float(line)))


def main() -> int:
    """Work for the harness; returns the exit status: 0 done, 1 failed."""
    task = json.loads(sys.argv[1])
    # The harness stops workers between their turns: if it is killed they must not stay behind, stopped for ever.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def answer(value: dict[str, Any]) -> None:
        answers.write(json.dumps(value) + "\n")

    try:
        if task["core"] is not None:
            # Before anything is imported that starts threads: they inherit it.
            os.sched_setaffinity(0, {task["core"]})
        module, name = task["function"].split(":")
        serve(getattr(importlib.import_module(module), name), task, answer)
    except Exception as error:
        traceback.print_exc()
        text = " ".join(str(error).split())
        answer({"error": f"{type(error).__name__}: {text}"[:500]})
        return 1
    return 0


if __name__ == "__main__":
    status = main()
    sys.stderr.flush()
    # Some loaders' threads and shared memory do not survive an orderly end; all answers are written.
    os._exit(status)
