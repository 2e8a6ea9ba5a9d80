"""One clock for the time lines of all ranks: how far every rank's clock is ahead of rank 0's.

Rank 0 asks another rank for its time, again and again. In the exchange that took least, the answer was given somewhere
between question and receipt; taken to be in the middle, it is wrong by half of that exchange's time at most. (Cristian,
"Probabilistic clock synchronization", Distributed Computing 3, 1989.) Ranks of one kernel share its clock: for them
there is nothing to estimate. Measured before and after what is traced, so that clocks that drift are told apart too.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from engine.reduction import wait_for

ROUNDS = 32
"""exchanges with each clock"""


@dataclass(frozen=True)
class Offset:
    """How far a rank's clock is ahead of rank 0's; nanoseconds all."""

    ahead: float = 0.0
    uncertainty: float = 0.0
    """most by which that may be wrong"""
    at: int = 0
    """when, by the rank's own clock"""


@dataclass(frozen=True)
class Clock:
    """A clock, and which one it is: equal names are one and the same clock."""

    now: Callable[[], int] = time.monotonic_ns
    name: str = ""

    @classmethod
    def of_this_host(cls, rank: int) -> Clock:
        """The monotonic clock of this host's kernel."""
        name = f"rank {rank}"
        with suppress(OSError):
            boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
            name = f"{boot}/{os.readlink('/proc/self/ns/time')}"
        return cls(name=name)


def measure_offsets(comm: Any, clock: Clock) -> list[Offset]:
    """Compare all clocks with rank 0's. Collective; nothing else may travel on the communicator meanwhile.

    Args:
        comm: mpi4py communicator of all ranks.
        clock: this rank's.

    Returns:
        One per rank, on every rank.
    """
    names = comm.allgather(clock.name)
    known = {names[0]: Offset()}
    for rank, name in enumerate(names):
        if name in known:
            continue
        # Whoever is not asked sleeps: a rank that spins could take the core of those that are compared.
        if comm.rank == 0:
            known[name] = _ask(comm, clock, rank)
        elif comm.rank == rank:
            _answer(comm, clock)
        known.setdefault(name, Offset())
        wait_for(comm.Ibarrier().Test)
    found: list[Offset] = comm.bcast([known[name] for name in names], root=0)
    return found


def _ask(comm: Any, clock: Clock, rank: int) -> Offset:
    theirs, best = np.zeros(1, np.int64), Offset(uncertainty=float("inf"))
    for _ in range(ROUNDS):
        asked = clock.now()
        comm.Send(theirs, dest=rank)
        comm.Recv(theirs, source=rank)
        half = (clock.now() - asked) / 2
        if half < best.uncertainty:
            best = Offset(int(theirs[0]) - (asked + half), half, int(theirs[0]))
    return best


def _answer(comm: Any, clock: Clock) -> None:
    mine = np.zeros(1, np.int64)
    for _ in range(ROUNDS):
        comm.Recv(mine, source=0)
        mine[0] = clock.now()
        comm.Send(mine, dest=0)


class Alignment:
    """Turns a rank's times into rank 0's.

    Args:
        before, after: its clock's offset at two moments; between and beside them it is taken to drift evenly.
    """

    def __init__(self, before: Offset, after: Offset) -> None:
        self._before = before
        between = after.at - before.at
        self._drift = (after.ahead - before.ahead) / between if between > 0 else 0.0
        self.uncertainty = max(before.uncertainty, after.uncertainty)
        """nanoseconds"""

    def __call__(self, time_ns: int) -> int:
        """A moment by the rank's clock, by rank 0's."""
        return round(time_ns - self._before.ahead - self._drift * (time_ns - self._before.at))


def alignments(before: Sequence[Offset], after: Sequence[Offset]) -> list[Alignment]:
    """Every rank's."""
    return [Alignment(*pair) for pair in zip(before, after, strict=True)]
