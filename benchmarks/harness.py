"""Methods measured against each other: each in a process of its own on one core, taking turns round by round.

    methods --start one by one, prepare, warm up--> workers --rounds of turns--> figures (one rate per round)

Turns alternate so that whatever slows the machine for a while slows all methods alike. Between its turns a worker is
stopped (SIGSTOP): neither it nor a thread of it can work ahead while the clock stands, or take the core from another.
A method whose packages are missing, or that fails, is skipped with the reason; the others go on.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from types import TracebackType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
EXTRA_PYTHON = ROOT / "build" / "bench-venv" / "bin" / "python"
"""an environment beside this one, for packages that do not get along with it"""
START_SECONDS = 3600
"""a worker may have to write its files first"""
THREADS = "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"
HAS_PACKAGES = "import sys; from importlib import metadata; [metadata.version(name) for name in sys.argv[1:]]"


class Skipped(Exception):
    """Why a method has no figures."""


@dataclass(frozen=True)
class Method:
    """Something to measure."""

    name: str
    function: str
    """module:name of a generator of units done (see benchmarks.worker)"""
    arguments: Mapping[str, Any]
    packages: tuple[str, ...] = ()
    """distributions that it needs beside this project's own"""
    install: str = ""
    """how to get them"""


@dataclass
class Figures:
    """What was measured of a method."""

    versions: Mapping[str, str]
    """of the Python and the packages that it ran on"""
    rates: list[float] = field(default_factory=list)
    """units a second, one per round"""
    units: int = 0
    bytes_read: int | None = 0
    """taken through read calls in all rounds; None where Linux does not tell"""

    def add(self, turn: Mapping[str, Any]) -> None:
        """Take a turn's answer."""
        self.rates.append(turn["units"] / turn["seconds"])
        self.units += turn["units"]
        known = self.bytes_read is not None and turn["bytes_read"] is not None
        self.bytes_read = self.bytes_read + turn["bytes_read"] if known else None

    @property
    def rate(self) -> float:
        """The median, units a second."""
        return median(self.rates)

    @property
    def bytes_per_unit(self) -> float | None:
        """Bytes taken through read calls per unit; those out of memory maps or a cache of its own do not count."""
        return None if self.bytes_read is None else self.bytes_read / self.units


class Progress:
    """One line that says what is going on: in place on a terminal, otherwise a line each time."""

    def __init__(self) -> None:
        self._in_place = sys.stderr.isatty()

    def say(self, text: str) -> None:
        """Show it in place of the last one."""
        print(
            f"\r\x1b[K{text}" if self._in_place else text,
            end="" if self._in_place else "\n",
            file=sys.stderr,
            flush=True,
        )

    def detail(self, text: str) -> None:
        """Show it where it costs no line."""
        if self._in_place:
            self.say(text)

    def done(self) -> None:
        """Clear the line."""
        if self._in_place:
            self.say("")


def python_for(method: Method) -> str:
    """The interpreter that has the method's packages: this one, or else that of the extra environment.

    Raises:
        Skipped: none has.
    """
    for python in (sys.executable, str(EXTRA_PYTHON)):
        if not method.packages:
            return python
        if Path(python).exists():
            command = [python, "-c", HAS_PACKAGES, *method.packages]
            if subprocess.run(command, capture_output=True, cwd=ROOT).returncode == 0:
                return python
    raise Skipped(f"not installed: {method.install or 'pip install ' + ' '.join(method.packages)}")


class Worker:
    """A subprocess that works for one method, or calls a function once. Close it, or use it as a context manager.

    Raises:
        Skipped: it cannot do its work; with the reason.
    """

    def __init__(self, python: str, function: str, arguments: Mapping[str, Any], **task: Any) -> None:
        task |= {"function": function, "arguments": dict(arguments)}
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  (closed with the worker)
        self._process = subprocess.Popen(
            [python, "-m", "benchmarks.worker", json.dumps(task)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            cwd=ROOT,
            env=os.environ | (dict.fromkeys(THREADS, "1") if task["core"] is not None else {}),
            start_new_session=True,
        )

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def turn(self, seconds: float) -> dict[str, Any]:
        """Let it work for about so many seconds, and no longer."""
        os.kill(self._process.pid, signal.SIGCONT)
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(f"{seconds}\n".encode())
            self._process.stdin.flush()
        except BrokenPipeError:
            raise Skipped(self._last_words()) from None
        found = self.answer(60 + 10 * seconds)
        os.kill(self._process.pid, signal.SIGSTOP)
        return found

    def answer(self, limit: float) -> dict[str, Any]:
        """Its next answer, waited for so many seconds."""
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], limit)
        if not ready:
            raise Skipped(f"no answer within {limit:.0f} seconds")
        line = self._process.stdout.readline()
        if not line:
            raise Skipped(self._last_words())
        found: dict[str, Any] = json.loads(line)
        if "error" in found:
            raise Skipped(found["error"])
        return found

    def close(self) -> None:
        """End it: by itself, or after some seconds by force."""
        if self._process.poll() is None:
            os.kill(self._process.pid, signal.SIGCONT)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.close()
            self._process.wait(5)
        except (BrokenPipeError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._log.close()

    def _last_words(self) -> str:
        self._process.wait(5)
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        return f"ended with status {self._process.returncode}: {lines[-1] if lines else 'without a word'}"


def call(function: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """What a function returns in a fresh process, on all cores.

    Raises:
        Skipped: it failed.
    """
    with Worker(sys.executable, function, arguments, core=None, turns=False, packages=()) as worker:
        return worker.answer(START_SECONDS)


class _Turns:
    """The workers that are still at it, and what is known of all."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.workers: dict[str, Worker] = {}
        self.figures: dict[str, Figures] = {}
        self.skipped: dict[str, str] = {}

    def start(self, method: Method, core: int) -> None:
        """Start a method's worker; it prepares, warms up and has a turn that does not count."""
        try:
            task = {"core": core, "turns": True, "packages": method.packages}
            worker = Worker(python_for(method), method.function, method.arguments, **task)
            self.workers[method.name] = worker
            self.figures[method.name] = Figures(worker.answer(START_SECONDS)["versions"])
            worker.turn(self.seconds)
        except Skipped as reason:
            self._skip(method.name, reason)

    def turn(self, name: str) -> None:
        """Let a method have its turn."""
        try:
            self.figures[name].add(self.workers[name].turn(self.seconds))
        except Skipped as reason:
            self._skip(name, reason)

    def close(self) -> None:
        """End the workers."""
        for worker in self.workers.values():
            worker.close()

    def _skip(self, name: str, reason: Skipped) -> None:
        self.skipped[name] = str(reason)
        self.figures.pop(name, None)
        if name in self.workers:
            self.workers.pop(name).close()


def take_turns(
    methods: Sequence[Method], rounds: int, seconds: float, progress: Progress
) -> tuple[dict[str, Figures], dict[str, str]]:
    """Measure methods against each other.

    Args:
        methods: in the order in which they take turns.
        rounds: turns of each.
        seconds: length of a turn; before the first round each has a turn that does not count.
        progress: told what is going on.

    Returns:
        Figures by name, and the reasons of those that have none.
    """
    turns = _Turns(seconds)
    core = max(os.sched_getaffinity(0))
    try:
        for method in methods:
            progress.say(f"preparing {method.name}")
            turns.start(method, core)
        for number in range(1, rounds + 1):
            progress.say(f"round {number} of {rounds}")
            for name in list(turns.workers):
                progress.detail(f"round {number} of {rounds}: {name}")
                turns.turn(name)
    finally:
        progress.done()
        turns.close()
    return turns.figures, turns.skipped
