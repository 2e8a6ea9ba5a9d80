"""A split of a dataset, opened for reading: rows in, a padded batch out."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from native.batch import Batch, BatchBuffer
from native.format import TOKEN_BYTES, BucketShape, DatasetError, entries_of, read_manifest, read_vocabulary
from native.parts import Parts
from native.reader import ChunkFault, ChunkReader
from native.stream import BatchPlan, BatchStream
from native.text import FIRST_WORD_ID, SPLITS

DEFAULT_CACHE_BYTES = 512 << 20


class Dataset:
    """One split. Rows are numbered bucket after bucket: bucket b holds rows starts[b] .. starts[b + 1].

    Safe to share between threads (reads take turns); close it, or use it as a context manager.
    """

    def __init__(self, folder: Path, split: str, cache_bytes: int) -> None:
        self.folder, self.split = folder, split
        self.manifest = read_manifest(folder)
        if split not in SPLITS:
            raise DatasetError(f"{folder}: there is no split {split!r}; take one of {', '.join(SPLITS)}")
        self.digest: str = self.manifest["digest"]
        self.ids = self.manifest["vocabulary"]["words"] + FIRST_WORD_ID
        """number of token ids: pad, unknown and the words"""
        self.bounds: list[int] = self.manifest["bucket_bounds"]
        self.chunk_rows: int = self.manifest["chunk_rows"]
        self._reader: ChunkReader | None = None
        self._lock = threading.Lock()
        self._process = os.getpid()
        self.streams: weakref.WeakSet[BatchStream] = weakref.WeakSet()
        """those that read this split; closed with it"""
        self.parts = Parts(folder, self.manifest, entries_of(self.manifest["parts"], split))
        self.parts.require_rows(self.manifest["splits"][split]["bucket_rows"])
        token_bytes = TOKEN_BYTES[self.manifest["token_type"]]
        self.layout = [
            BucketShape(bound, rows, self.chunk_rows, bound * token_bytes)
            for bound, rows in zip(self.bounds, self.parts.rows, strict=True)
        ]
        self.starts = np.cumsum([0, *self.parts.rows])
        chunk_bytes = [self.chunk_rows * (shape.row_bytes + 3) for shape in self.layout]
        self._slots = [max(1, cache_bytes // len(self.layout) // size) for size in chunk_bytes]
        self._reader = self.make_reader(self._slots)

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __enter__(self) -> Dataset:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Dataset({str(self.folder)!r}, split={self.split!r}): {len(self)} rows in buckets {self.bounds}"

    @property
    def stars(self) -> list[int]:
        """Number of rows with 1, 2, 3, 4 and 5 stars."""
        return list(self.manifest["splits"][self.split]["stars"])

    @property
    def chunks_decoded(self) -> int:
        """Chunks read and decoded by reads of rows since the split was opened; each stream counts its own."""
        return 0 if self._reader is None else int(self._reader.chunks_decoded)

    def vocabulary(self) -> list[str]:
        """The words, that of id i + 2 at entry i."""
        return read_vocabulary(self.folder, self.manifest)

    def read_bucket(self, bucket: int, rows: np.ndarray, buffer: BatchBuffer | None = None) -> Batch:
        """Read rows of one bucket, at memory speed when they stand in chunk order.

        Args:
            bucket: index into layout.
            rows: int64 row numbers within the bucket, any order, repeats allowed.
            buffer: memory to fill; a new one when None.

        Returns:
            The batch, L = the bucket's bound.

        Raises:
            IndexError: a row outside the bucket.
            TypeError: rows that are no whole numbers.
            DatasetError: damaged data, with file, dataset and chunk.
        """
        if not np.issubdtype(np.asarray(rows).dtype, np.integer):
            raise TypeError(f"rows are row numbers, not {np.asarray(rows).dtype} values")
        bound = self.layout[bucket].bound
        batch = (buffer or BatchBuffer(len(rows), bound)).view(len(rows), bound)
        with self._usable_lock():
            reader = self._reader
            if reader is None:
                raise self.closed_error()
            try:
                reader.read(bucket, np.ascontiguousarray(rows, np.int64), batch.tokens, batch.lengths, batch.stars)
            except ChunkFault as fault:
                raise self.parts.explain(fault) from None
        return batch

    def read(self, rows: Sequence[int] | np.ndarray) -> Batch:
        """Read any rows of the split, in the order given, padded to the widest bucket among them.

        Raises:
            IndexError: a row outside the split.
            DatasetError: damaged data.
        """
        wanted = np.asarray(rows, np.int64)
        if wanted.size and (wanted.min() < 0 or wanted.max() >= len(self)):
            raise IndexError(f"rows must lie in 0..{len(self) - 1}, found {wanted.min()}..{wanted.max()}")
        buckets = np.searchsorted(self.starts, wanted, side="right") - 1
        bound = max((self.layout[b].bound for b in np.unique(buckets)), default=self.bounds[0])
        batch = BatchBuffer(len(wanted), bound, np.zeros).view(len(wanted), bound)
        for b in np.unique(buckets):
            places = np.flatnonzero(buckets == b)
            part = self.read_bucket(int(b), wanted[places] - self.starts[b])
            batch.tokens[places, : self.layout[b].bound] = part.tokens
            batch.lengths[places] = part.lengths
            batch.stars[places] = part.stars
        return batch

    def batches(
        self,
        plan: BatchPlan,
        *,
        epochs: int = 1,
        epoch: int = 0,
        step: int = 0,
        rank: int = 0,
        shares: Sequence[int] | None = None,
    ) -> Iterator[Batch]:
        """A plan's batches in order, read ahead by a thread that does not hold the GIL.

        Args:
            plan: `engine.Plan(layout=data.layout, ...)`.
            epochs: passes over the split, the first one counted from `epoch`.
            epoch, step: where to begin, both counted from 0; going on anywhere takes no time.
            rank, shares: take only this rank's part of each batch; shares are rows of a full batch per rank.

        Yields:
            Batches; their arrays hold until the next one is asked for. A part may have 0 rows.

        Raises:
            ValueError: a plan for other data, or shares that do not make the batch.
            IndexError: no such step.
            DatasetError: damaged data, with file, dataset and chunk.
        """
        shares = tuple(shares or (plan.batch_size,))
        if sum(shares) != plan.batch_size or min(shares) < 0 or not 0 <= rank < len(shares):
            raise ValueError(f"shares {list(shares)} of rank {rank} do not make the batch of {plan.batch_size} rows")
        if plan.layout != tuple(self.layout):
            raise ValueError("the plan was made for other data; make it with Plan(layout=data.layout, ...)")
        if not 0 <= step < plan.order.steps or epoch < 0 or epochs < 0:
            raise IndexError(
                f"epoch {epoch}, step {step}: an epoch of this plan has the steps 0..{plan.order.steps - 1}"
            )
        begin, end = sum(shares[:rank]), sum(shares[: rank + 1])
        return self._iterate(plan, epoch, step, epoch + epochs, begin, end)

    def _iterate(
        self, plan: BatchPlan, epoch: int, step: int, last_epoch: int, begin: int, end: int
    ) -> Iterator[Batch]:
        wanted = ((e, s) for e in range(epoch, last_epoch) for s in range(step if e == epoch else 0, plan.order.steps))
        with BatchStream(self, plan, last_epoch) as stream:
            for place in wanted:
                stream.submit(*place, begin, end)
                if stream.waiting == stream.ahead + 1:
                    yield stream.take().batch
            while stream.waiting:
                yield stream.take().batch

    @property
    def is_open(self) -> bool:
        """Whether rows can be read."""
        return self.parts.is_open

    def make_reader(self, slots: Sequence[int]) -> ChunkReader:
        """A reader of its own, with a cache of `slots` chunks per bucket.

        Raises:
            DatasetError: the split is closed.
        """
        if not self.is_open:
            raise self.closed_error()
        return self.parts.make_reader(slots)

    def close(self) -> None:
        """Close the files, and the streams that read them; reading afterwards is an error."""
        for stream in list(self.streams):
            stream.close()
        with self._usable_lock():
            self._reader = None
            self.parts.close()

    def closed_error(self) -> DatasetError:
        """What reading a closed split raises."""
        return DatasetError(f"{self.folder}: the split {self.split!r} is closed; open it again to read")

    def _usable_lock(self) -> threading.Lock:
        # In a forked child another thread of the parent may have held the lock, in the middle of filling the cache.
        if self._process != os.getpid():
            self._reader = self.make_reader(self._slots) if self._reader is not None else None
            self._lock, self._process = threading.Lock(), os.getpid()
        return self._lock


def open_dataset(
    folder: str | os.PathLike[str], split: str = "train", cache_bytes: int = DEFAULT_CACHE_BYTES
) -> Dataset:
    """Open one split of a dataset for reading.

    Args:
        folder: the dataset's folder, as python -m mr wrote it.
        split: "train", "validation" or "test".
        cache_bytes: most memory for decoded chunks, over all buckets together.

    Raises:
        DatasetError: missing, damaged or not a dataset.
    """
    return Dataset(Path(folder), split, cache_bytes)
