"""What each rank does and how far it is: noted by the rank itself, carried to rank 0 by the heartbeats.

    every rank   Watch: what the training thread is at, and seconds of compute, input and wait, added up
                 --heartbeat (engine.heartbeat), about once a second--> rank 0
    rank 0       Board: the last reports of every rank; what people are shown is made from them (engine.display)

No collective is added to a step, and nothing waits for anyone: a rank that hangs is seen to hang.
"""

from __future__ import annotations

import math
import resource
import struct
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

import torch

from engine.timing import STARVED

REPORTS = 16
"""reports of a rank that are kept: its figures are of the time between the first and the last of them"""
SILENT_SECONDS = 5.0
"""without a report, after which a rank is shown as silent; it is lost after --rank-timeout"""
LONG_SECONDS = 3.0
"""at one and the same thing, after which that is shown with its time"""
WAIT_LIMIT, WAIT_MORE = 1.2, 10.0
"""a rank that waits for others waits so much longer than --step-timeout, and so many seconds, twice as many unless it
is rank 0: the one that it waits for is to speak first, then rank 0, and not all of them"""
_REPORT = struct.Struct("!QdddBdQQ")
_PAGE = resource.getpagesize()


class Phase(IntEnum):
    """What a rank's training thread is at."""

    STARTING = 0
    INPUT = 1
    COMPUTE = 2
    WAIT = 3
    """for the other ranks"""
    VALIDATE = 4
    SAVE = 5


WORDS = {
    Phase.STARTING: "starting",
    Phase.INPUT: "input",
    Phase.COMPUTE: "computing",
    Phase.WAIT: "waiting",
    Phase.VALIDATE: "validating",
    Phase.SAVE: "saving",
}


@dataclass(frozen=True)
class Report:
    """A rank's figures at one moment; seconds and steps are since its process began to train."""

    steps: int = 0
    compute: float = 0.0
    input: float = 0.0
    wait: float = 0.0
    phase: Phase = Phase.STARTING
    phase_seconds: float = 0.0
    """since it is in this phase"""
    memory: int = 0
    """resident bytes of the process"""
    gpu_memory: int = 0
    """bytes that torch holds on the rank's GPU, 0 without one"""

    def to_bytes(self) -> bytes:
        """As it travels."""
        return _REPORT.pack(
            self.steps, self.compute, self.input, self.wait, self.phase, self.phase_seconds, self.memory,
            self.gpu_memory,
        )  # fmt: skip

    @classmethod
    def from_bytes(cls, data: bytes) -> Report:
        """From what `to_bytes` made.

        Raises:
            ValueError: it is something else.
        """
        try:
            steps, compute, read, wait, phase, seconds, memory, gpu = _REPORT.unpack(data)
        except struct.error as error:
            raise ValueError(f"not a rank's report ({error})") from None
        return cls(steps, compute, read, wait, Phase(phase), seconds, memory, gpu)


class Watch:
    """This rank's own notes. The training thread writes them, any thread reads them; no lock, each is one store."""

    def __init__(self) -> None:
        self._phase = (Phase.STARTING, time.monotonic())
        self._timed = (0, 0.0, 0.0, 0.0)

    def enter(self, phase: Phase) -> None:
        """The training thread turns to something else."""
        self._phase = (phase, time.monotonic())

    def timed(self, bound: int, rows: int, compute: float, input: float, wait: float) -> None:
        """A step is over: what it cost this rank, in seconds (a hook of the trainer's)."""
        steps, computed, read, waited = self._timed
        self._timed = (steps + 1, computed + compute, read + input, waited + wait)

    @property
    def at(self) -> tuple[Phase, float]:
        """What the training thread is at, and since when (time.monotonic): another object each time it turns to it."""
        return self._phase

    def report(self) -> Report:
        """The figures of this moment."""
        phase, since = self._phase
        return Report(*self._timed, phase, time.monotonic() - since, resident_bytes(), _gpu_bytes())


class Stall:
    """Tells when this rank's training thread has been at one and the same thing for too long: a deadlock, a file system
    or a GPU that does not answer. The process lives, so that its heartbeat alone does not show it.

    Validation, and what comes before the first step, may take as long as they do.

    Args:
        watch: this rank's notes.
        limit: seconds that input or compute of a step, or rank 0's saving, may take; 0 for any time.
        root: whether this is rank 0, for which all others wait in saving.
    """

    def __init__(self, watch: Watch, limit: float, root: bool) -> None:
        self._watch, self._limit = watch, limit
        waiting = limit * WAIT_LIMIT + WAIT_MORE * (1 if root else 2)
        self._limits = {
            Phase.INPUT: (limit, "is at the input of a step"),
            Phase.COMPUTE: (limit, "is at the compute of a step"),
            Phase.WAIT: (waiting, "waits for the other ranks"),
            Phase.SAVE: (limit, "is saving") if root else (waiting, "waits for the other ranks"),
        }
        self._at: object = None
        self._seconds = 0.0

    def after(self, seconds: float) -> str | None:
        """What takes too long, after so many more seconds in which this process was awake; None while nothing does."""
        at = self._watch.at
        if at is not self._at:
            self._at, self._seconds = at, 0.0
            return None
        self._seconds += seconds
        limit, words = self._limits.get(at[0], (math.inf, ""))
        if not self._limit or self._seconds < limit:
            return None
        return f"{words} for {self._seconds:.0f} s (--step-timeout {self._limit:g}; give more where that is right)"


def resident_bytes() -> int:
    """Memory of this process that is in use."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE
    except (OSError, ValueError, IndexError):
        return 0


def _gpu_bytes() -> int:
    if not torch.cuda.is_available() or not torch.cuda.is_initialized():
        return 0
    return torch.cuda.memory_reserved()


@dataclass(frozen=True)
class RankFigures:
    """One rank as people are shown it; parts are of the time of the last reports and sum to about 1."""

    rank: int
    host: str
    share: int
    """rows of a full batch"""
    state: str
    """one or two words"""
    alarming: bool = False
    """silent or starved: somebody should look"""
    known: bool = False
    """whether the parts are: it has reported, and made a step meanwhile"""
    compute: float = 0.0
    input: float = 0.0
    wait: float = 0.0
    step_compute: float = 0.0
    """seconds of compute of a step"""
    memory: int = 0
    gpu_memory: int = 0


class Board:
    """The last reports of all ranks, on rank 0.

    Args:
        watch: of rank 0 itself.
        hosts: host name of each rank.
    """

    def __init__(self, watch: Watch, hosts: Sequence[str]) -> None:
        self._watch, self._hosts = watch, hosts
        self._reports: list[deque[tuple[float, Report]]] = [deque(maxlen=REPORTS) for _ in hosts]

    def hear(self, rank: int, data: bytes) -> None:
        """Take a rank's report; one that cannot be read is left out."""
        try:
            self._reports[rank].append((time.monotonic(), Report.from_bytes(data)))
        except (ValueError, IndexError):
            return

    def figures(self, shares: Sequence[int]) -> list[RankFigures]:
        """Every rank's figures of this moment.

        Args:
            shares: rows of a full batch per rank.
        """
        now = time.monotonic()
        self._reports[0].append((now, self._watch.report()))
        return [
            _figures(rank, host, share, self._reports[rank], now)
            for rank, (host, share) in enumerate(zip(self._hosts, shares, strict=True))
        ]


def _figures(rank: int, host: str, share: int, reports: deque[tuple[float, Report]], now: float) -> RankFigures:
    if not reports:
        return RankFigures(rank, host, share, "no figures")
    # By their places alone: the heartbeat's thread may add one meanwhile.
    (_, first), (heard, last) = reports[0], reports[-1]
    steps = last.steps - first.steps
    compute, read, wait = last.compute - first.compute, last.input - first.input, last.wait - first.wait
    whole = compute + read + wait
    known = steps > 0 and whole > 0
    parts = (compute / whole, read / whole, wait / whole) if known else (0.0, 0.0, 0.0)
    state, alarming = _state(last, now - heard, parts, known)
    return RankFigures(
        rank, host, share, state, alarming, known, *parts, compute / steps if known else 0.0, last.memory,
        last.gpu_memory,
    )  # fmt: skip


def _state(last: Report, age: float, parts: tuple[float, float, float], known: bool) -> tuple[str, bool]:
    """A word or two, and whether it is alarming."""
    if age > SILENT_SECONDS:
        return f"silent {age:.0f} s", True
    word, seconds = WORDS[last.phase], last.phase_seconds + age
    if seconds > LONG_SECONDS:
        return f"{word} {seconds:.0f} s", last.phase == Phase.INPUT
    if last.phase in (Phase.VALIDATE, Phase.SAVE) or not known:
        return word, False
    if parts[1] > STARVED:
        return "starved", True
    return (WORDS[Phase.COMPUTE] if parts[0] >= parts[2] else WORDS[Phase.WAIT]), False
