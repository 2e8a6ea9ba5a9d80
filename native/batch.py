"""A batch of rows, and the memory that batches are read into."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Batch:
    """Rows of one padded length; the arrays share memory with the caller's buffer when one was given."""

    tokens: np.ndarray
    """int32 [n, L], padded on the right with 0"""
    lengths: np.ndarray
    """int32 [n], 1..L"""
    stars: np.ndarray
    """uint8 [n], 1..5"""

    def __len__(self) -> int:
        return len(self.lengths)


class BatchBuffer:
    """Memory for batches of up to `rows` rows of up to `bound` tokens, reused from batch to batch.

    Pages that no batch needs are never touched: a rank with a small share takes little memory.
    """

    def __init__(self, rows: int, bound: int, allocate: Callable[[int, type], np.ndarray] = np.empty) -> None:
        self.arrays = allocate(rows * bound, np.int32), allocate(rows, np.int32), allocate(rows, np.uint8)
        """tokens, lengths, stars; flat"""
        self._batch: Batch | None = None

    def view(self, rows: int, bound: int) -> Batch:
        """A batch of this shape in the buffer's memory; it replaces what the buffer held."""
        if self._batch is None or self._batch.tokens.shape != (rows, bound):
            tokens, lengths, stars = self.arrays
            self._batch = Batch(tokens[: rows * bound].reshape(rows, bound), lengths[:rows], stars[:rows])
        return self._batch
