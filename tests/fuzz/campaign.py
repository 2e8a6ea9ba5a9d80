"""A campaign: workers in processes of their own, watched from outside."""

from __future__ import annotations

import ctypes
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from native import reader
from tests.fuzz.board import NONE, Board
from tests.fuzz.cases import NAMES, Cases
from tests.fuzz.material import make_material
from tests.fuzz.subject import CRASH, FAILURES, HANG, OUTCOMES, Subject, memory_folder

ROOT = Path(__file__).resolve().parents[2]
SPARE_MEMORY = 4 << 30
"""bytes of address space that a worker may take beside what it has when it begins: no case may need more"""
START_SECONDS = 300
LOOK_SECONDS = 0.1
PR_SET_PDEATHSIG = 1
MOST_CRASHES = 100
"""crashes and hangs after which a campaign gives up: each costs the start of a worker"""


@dataclass
class Result:
    """What came of the cases."""

    counts: dict[str, Counter[str]]
    """per kind and outcome"""
    failures: list[dict[str, Any]]
    truncations: int
    seed: int
    seconds: float
    gave_up: bool
    """there were too many crashes and hangs, and not all cases were run"""

    @property
    def totals(self) -> Counter[str]:
        """Per outcome, over all kinds."""
        return sum(self.counts.values(), Counter())

    @property
    def failed(self) -> int:
        """Cases that failed."""
        return sum(self.totals[outcome] for outcome in FAILURES)

    def as_json(self) -> dict[str, Any]:
        """Everything as plain values."""
        cases = sum(self.totals.values())
        return {
            "cases": cases,
            "truncations": self.truncations,
            "seed": self.seed,
            "outcomes": {outcome: self.totals[outcome] for outcome in OUTCOMES},
            "failed": self.failed,
            "gave_up": self.gave_up,
            "failures": self.failures,
            "kinds": {kind: dict(counts) for kind, counts in self.counts.items()},
            "seconds": round(self.seconds, 1),
            "per_second": round(cases / self.seconds, 1),
            "sanitized": sanitized(),
        }


def sanitized() -> bool:
    """Whether the native modules are those that sanitized.sh built."""
    return "sanitized" in Path(reader.__file__).parts


@dataclass(frozen=True)
class Task:
    """What a worker is to do."""

    folder: str
    job: int
    jobs: int
    first: int
    """the place, among its own cases, at which it begins"""
    seed: int
    count: int
    every: int

    def numbers(self, cases: Cases) -> list[int]:
        """All cases of its job."""
        return cases.numbers(self.count, self.every)[self.job :: self.jobs]


@dataclass
class _Worker:
    """A worker process and what is known of it."""

    task: Task
    process: subprocess.Popen[bytes]
    log: Path
    at: int = NONE
    since: float = field(default_factory=time.monotonic)


class Campaign:
    """Truncations and so many mutations.

    Args:
        seed: of the mutations.
        count: how many.
        jobs: workers.
        every: of the truncations every so many is taken.
        seconds: a case that takes longer hangs.
    """

    def __init__(self, *, seed: int, count: int, jobs: int, every: int, seconds: float) -> None:
        self.folder = memory_folder()
        self._tasks = [Task(str(self.folder), job, jobs, 0, seed, count, every) for job in range(jobs)]
        self._seed, self._seconds = seed, seconds
        self._crashes: list[dict[str, Any]] = []

    def run(self) -> Result:
        """Run it to its end."""
        begin = time.monotonic()
        try:
            self._cases = Cases(make_material(self.folder), self._seed)
            self._board = Board(self.folder / "board", len(self._tasks), len(NAMES), len(OUTCOMES))
            self._watch()
            return self._result(time.monotonic() - begin)
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _watch(self) -> None:
        workers = [self._start(task) for task in self._tasks]
        try:
            while workers and len(self._crashes) < MOST_CRASHES:
                time.sleep(LOOK_SECONDS)
                # In place, so that whatever happens in between all are known that must be ended.
                for place, worker in reversed(list(enumerate(workers))):
                    following = self._look(worker)
                    workers[place : place + 1] = [] if following is None else [following]
        finally:
            for worker in workers:
                worker.process.kill()
                worker.process.wait()

    def _start(self, task: Task) -> _Worker:
        self._board.at[task.job] = NONE
        log = self.folder / f"log-{task.job}"
        command = [sys.executable, "-m", "tests.fuzz", "--worker", json.dumps(vars(task))]
        with log.open("wb") as stream:
            return _Worker(task, subprocess.Popen(command, stdout=stream, stderr=stream, cwd=ROOT), log)

    def _look(self, worker: _Worker) -> _Worker | None:
        """See how a worker is getting on; returns who is to be watched from now on, None when its job is done."""
        status = worker.process.poll()
        if status == 0:
            return None
        if status is None:
            at, now = int(self._board.at[worker.task.job]), time.monotonic()
            if at != worker.at:
                worker.at, worker.since = at, now
            if now - worker.since < (START_SECONDS if at == NONE else self._seconds):
                return worker
            worker.process.kill()
            worker.process.wait()
        return self._replace(worker, status)

    def _replace(self, worker: _Worker, status: int | None) -> _Worker:
        """Note what ended a worker, and start one that goes on behind it; status None: it was killed as it hung."""
        at = int(self._board.at[worker.task.job])
        said = worker.log.read_text(errors="replace").strip()[:4000]
        if at == NONE:
            raise RuntimeError(f"a worker ended with status {status} before its first case: {said}")
        text = f"no end within {self._seconds:g} s" if status is None else f"status {status}: {said}"
        outcome = HANG if status is None else CRASH
        self._crashes.append({"case": at, "kind": self._cases.kind(at), "outcome": outcome, "text": text})
        first = worker.task.numbers(self._cases).index(at) + 1
        return self._start(Task(**{**vars(worker.task), "first": first}))

    def _result(self, seconds: float) -> Result:
        counts = {
            kind: Counter({outcome: count for outcome, count in zip(OUTCOMES, line, strict=True) if count})
            for kind, line in zip(NAMES, self._board.counts.sum(axis=0).tolist(), strict=True)
        }
        for crash in self._crashes:
            counts[crash["kind"]][crash["outcome"]] += 1
        failures = list(self._crashes)
        for path in sorted(self.folder.glob("failures-*")):
            failures += [json.loads(line) for line in path.read_text().splitlines()]
        truncations = sum(number < 0 for task in self._tasks for number in task.numbers(self._cases))
        gave_up = len(self._crashes) >= MOST_CRASHES
        return Result(counts, failures, truncations, self._seed, seconds, gave_up)


def work(task: Task) -> None:
    """A worker's work: its cases one after the other, each noted on the board before it begins."""
    # A campaign that is killed leaves no workers behind.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    sys.unraisablehook = _give_up
    folder = Path(task.folder)
    own = folder / f"worker-{task.job}"
    shutil.rmtree(own, ignore_errors=True)
    own.mkdir()
    board = Board(folder / "board", task.jobs, len(NAMES), len(OUTCOMES))
    material = make_material(own)
    cases, subject = Cases(material, task.seed), Subject(material, own)
    if not sanitized():  # whose shadow memory is all of the address space
        limit = _address_space() + SPARE_MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    for number in task.numbers(cases)[task.first :]:
        board.at[task.job] = number
        _sabotage(number)
        outcome, text = subject.attempt(cases.case(number), number)
        kind = cases.kind(number)
        board.counts[task.job, NAMES.index(kind), OUTCOMES.index(outcome)] += 1
        if outcome in FAILURES:
            with (folder / f"failures-{task.job}").open("a") as stream:
                stream.write(json.dumps({"case": number, "kind": kind, "outcome": outcome, "text": text}) + "\n")


def _sabotage(number: int) -> None:
    """Crash or hang in a case, so that a test sees whether that is noticed."""
    if os.environ.get("FUZZ_SABOTAGE") == f"{number} crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if os.environ.get("FUZZ_SABOTAGE") == f"{number} hang":
        time.sleep(3600)


def _give_up(unraisable: Any) -> None:
    """What a native function cannot raise, such as an index out of bounds in a build that checks them, is a crash."""
    print(f"{unraisable.object}: {unraisable.exc_type.__name__}: {unraisable.exc_value}", file=sys.stderr, flush=True)
    os._exit(70)


def _address_space() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return pages * resource.getpagesize()
