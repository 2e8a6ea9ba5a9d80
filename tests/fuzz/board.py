"""What workers have done so far, in memory that outlives them: a worker that crashes or hangs loses nothing."""

from __future__ import annotations

import mmap
from pathlib import Path

import numpy as np

NONE = -(1 << 62)
"""no case is being worked on"""


class Board:
    """Counts per kind and outcome, and the case that each worker is at.

    Args:
        path: a file that all processes share; made when it is missing.
        workers, kinds, outcomes: how many there may be.
    """

    def __init__(self, path: Path, workers: int, kinds: int, outcomes: int) -> None:
        size = 8 * (workers + workers * kinds * outcomes)
        if not path.exists():
            path.write_bytes(bytes(size))
        with path.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), size)
        numbers: np.ndarray = np.frombuffer(self._memory, np.int64)
        self.at = numbers[:workers]
        """number of the case that each worker is at"""
        self.counts = numbers[workers:].reshape(workers, kinds, outcomes)
