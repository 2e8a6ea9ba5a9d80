"""What the steps of an epoch cost each rank, for the "timeline" event of metrics.jsonl: over time, and who came last.

An epoch's sums per rank do not tell this: the rank that is last may be another one at every step. Each rank notes its
own steps, and the ranks put them together once, at the epoch's end.
"""

from __future__ import annotations

from array import array
from typing import Any

import numpy as np

MOST_PARTS = 48
"""parts into which an epoch is cut"""
MOST_CELLS = 1024
"""parts times ranks: the event of a large job must not outgrow all others together"""
LEAST_STEPS = 8
"""of a part, where the epoch has so many: fewer tell of single batches, which are long or short"""
FIELDS = 4
"""rows, seconds of compute, of input and of wait"""


class Timeline:
    """Notes this rank's steps; `add` is a hook of the trainer."""

    def __init__(self) -> None:
        self._noted = array("d")
        self._seconds_before = 0.0

    def start(self, seconds: float) -> None:
        """Begin anew, `seconds` into an epoch: after it was resumed inside, its first steps are not known here."""
        del self._noted[:]
        self._seconds_before = seconds

    def add(self, bound: int, rows: int, compute: float, input: float, wait: float) -> None:
        """Note a step: `rows` local rows (padded to `bound`), and this rank's seconds of compute, input and wait."""
        self._noted.extend((rows, compute, input, wait))

    def collect(self, comm: Any, step: int, epoch: int, seconds: float) -> dict[str, Any] | None:
        """Put together what all ranks have noted, at an epoch's end, and begin the next one. Collective.

        Args:
            comm: mpi4py communicator.
            step: steps done since training began.
            epoch: number of the epoch that these steps belong to.
            seconds: of the epoch's steps, those before `start` included.

        Returns:
            On rank 0 the event, None where there were no steps; None on the other ranks.
        """
        from mpi4py import MPI

        noted_SF = np.array(self._noted).reshape(-1, FIELDS)
        before = self._seconds_before
        self.start(0.0)
        steps = len(noted_SF)
        if not steps:
            return None
        compute_S, ready_S, wait_S = noted_SF[:, 1], noted_SF[:, 1] + noted_SF[:, 2], noted_SF[:, 3]
        most_3S = np.stack([compute_S, ready_S, -wait_S])
        comm.Allreduce(MPI.IN_PLACE, most_3S, op=MPI.MAX)
        last = int((ready_S == most_3S[1]).sum())
        ends_P = ends_of_parts(steps, comm.size)
        starts_P = np.concatenate(([0], ends_P[:-1]))
        gathered = comm.gather((last, np.add.reduceat(noted_SF, starts_P, axis=0)), root=0)
        if gathered is None:
            return None
        sums_RPF = np.stack([sums for _, sums in gathered])
        columns = {
            name: [[_short(value) for value in row] for row in sums_RPF[:, :, field].tolist()]
            for field, name in enumerate(("rows", "compute_seconds", "input_seconds", "wait_seconds"))
        }
        compute, ready, wait = most_3S.sum(axis=1).tolist()
        return {
            "event": "timeline",
            "step": step,
            "epoch": epoch,
            "first_step": step - steps + 1,
            "seconds": seconds - before,
            "longest_compute_seconds": compute,
            "longest_ready_seconds": ready,
            "least_wait_seconds": -wait,
            "last_steps": [count for count, _ in gathered],
            "ends": (ends_P + step - steps).tolist(),
            **columns,
        }


def ends_of_parts(steps: int, ranks: int) -> np.ndarray:
    """How many steps are done at the end of each part: int64 [parts], parts as equal as can be.

    Args:
        steps: to be cut in parts, at least one.
        ranks: of the job.
    """
    parts = max(1, min(steps // LEAST_STEPS, MOST_PARTS, MOST_CELLS // ranks))
    return (np.arange(1, parts + 1) * steps) // parts


def _short(value: float) -> float:
    """Six digits: enough for a picture, a third of the bytes."""
    return float(f"{value:.6g}")
