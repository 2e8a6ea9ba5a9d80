"""The plan: which rows make the global batch of any step, and which of them are this rank's. Pure.

The sequence of global batches is a function of (dataset shape, seed, epoch, step) alone. World size and shares
only cut each batch, so that any number of ranks, any split and any restart follow the same trajectory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from native.format import BucketShape
from native.order import BatchOrder

DEFAULT_WINDOW_BYTES = 256 << 20


@dataclass(frozen=True)
class GlobalBatch:
    """One step's batch, before it is cut into shares."""

    bucket: int
    number: int
    """the batch's number k within its bucket"""
    rows: int
    """rows of the whole batch; fewer than batch_size in a bucket's last batch"""


class Plan:
    """The order of rows of a split.

    Args:
        rows: number of rows of your own map-style data, shuffled fully; or
        layout: the buckets of a dataset (`data.layout`), shuffled by chunks and windows.
        batch_size: rows of a GLOBAL batch.
        seed: any integer.
        shuffle: False keeps the rows in their stored order (evaluation).
        window_bytes: decoded bytes of the shuffle window, over all buckets together; a split that is smaller is
            shuffled fully. Part of what defines the order: keep it when you resume.

    Raises:
        ValueError: no rows, or a batch size below 1.
    """

    def __init__(
        self,
        rows: int | None = None,
        *,
        layout: Sequence[BucketShape] | None = None,
        batch_size: int,
        seed: int,
        shuffle: bool = True,
        window_bytes: int = DEFAULT_WINDOW_BYTES,
    ) -> None:
        if (rows is None) == (layout is None):
            raise ValueError("give either rows or layout: a plan is made for your own rows or for a dataset's buckets")
        if rows is not None:
            layout = [BucketShape(bound=1, rows=rows, chunk_rows=max(1, rows), row_bytes=1)]
        assert layout is not None
        if batch_size < 1:
            raise ValueError(f"batch_size {batch_size} must be at least 1")
        if sum(shape.rows for shape in layout) < 1:
            raise ValueError("there are no rows to plan: the split is empty; name another one")
        self.layout = tuple(layout)
        self.batch_size = batch_size
        self.seed = seed
        self.shuffle = shuffle
        chunks = [-(-shape.rows // shape.chunk_rows) for shape in layout]
        total = sum(n * shape.chunk_rows * shape.row_bytes for n, shape in zip(chunks, layout, strict=True))
        # Every bucket has its part of the window, by its size. In stored order one chunk at a time is enough.
        self.windows = [max(1, n * min(window_bytes, total) // total) if shuffle else 1 for n in chunks]
        """chunks of a shuffle window per bucket"""
        self.order = self.make_order()

    def make_order(self) -> BatchOrder:
        """The order of rows as an object of its own: an order must not be used by two threads at once."""
        return BatchOrder(
            rows=[shape.rows for shape in self.layout],
            chunk_rows=[shape.chunk_rows for shape in self.layout],
            windows=self.windows,
            batch_size=self.batch_size,
            seed=self.seed,
            shuffle=self.shuffle,
        )

    @property
    def steps_per_epoch(self) -> int:
        """Global batches of an epoch, the short last one of each bucket included."""
        return int(self.order.steps)

    def batch(self, epoch: int, step: int) -> GlobalBatch:
        """The batch of a step, in O(1).

        Args:
            epoch: counted from 0.
            step: within the epoch, 0 .. steps_per_epoch - 1.
        """
        return GlobalBatch(*self.order.batch(epoch, step))

    def rows(self, epoch: int, batch: GlobalBatch) -> np.ndarray:
        """Row numbers, within its bucket, of a whole global batch, in chunk order: int64 [batch.rows]."""
        rows: np.ndarray = self.order.rows(epoch, batch.bucket, batch.number)
        return rows

    def slices(self, rows: int, shares: Sequence[int]) -> list[slice]:
        """Cut a batch of `rows` rows by the shares of a full one; contiguous, in the order of the ranks.

        Args:
            rows: rows of the batch, at most batch_size.
            shares: rows of a full batch per rank; their sum is batch_size.

        Returns:
            A slice per rank; a rank's slice may be empty, and together they cover the batch exactly once.
        """
        total = sum(shares)
        if total != self.batch_size:
            raise ValueError(f"shares {list(shares)} add up to {total}, not to the global batch of {self.batch_size}")
        edges = [int(edge) * rows // total for edge in np.cumsum([0, *shares])]
        return [slice(start, stop) for start, stop in pairwise(edges)]

    def local_rows(self, epoch: int, batch: GlobalBatch, shares: Sequence[int], rank: int) -> np.ndarray:
        """Row numbers, within its bucket, of one rank's slice of a batch."""
        return self.rows(epoch, batch)[self.slices(batch.rows, shares)[rank]]

    def epoch(self, epoch: int, start: int = 0) -> Iterator[GlobalBatch]:
        """The batches of an epoch in order, from step `start` on."""
        return (self.batch(epoch, step) for step in range(start, self.steps_per_epoch))
