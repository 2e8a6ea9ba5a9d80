"""A split of a dataset, opened for reading: rows in, a padded batch out."""

from __future__ import annotations

import hashlib
import os
import threading
import warnings
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin  # noqa: F401  (registers the LZ4 filter with h5py, for the fallback)
import numpy as np
from xxhash import xxh3_64_intdigest

from native.batch import Batch, BatchBuffer
from native.codecs import load_codecs
from native.format import (
    MANIFEST,
    BucketShape,
    ChunkIndex,
    DatasetError,
    group_name,
    read_chunk_index,
    read_manifest,
    read_vocabulary,
)
from native.reader import CHECKSUM_FAULT, FAULTS, ROW_CHECKSUM_FAULT, ChunkFault, ChunkReader
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
        self._item_bytes = np.dtype(self.manifest["token_type"]).itemsize
        self._parts = [part for part in self.manifest["parts"] if part["path"].split("/")[0] == split]
        self._files = _Files()
        self._reader: ChunkReader | None = None
        self._lock = threading.Lock()
        self._process = os.getpid()
        self.streams: weakref.WeakSet[BatchStream] = weakref.WeakSet()
        """those that read this split; closed with it"""
        try:
            indexes = [self._open_part(part) for part in self._parts]
            self.layout = [
                BucketShape(bound, sum(index[b].rows for index in indexes), self.chunk_rows, bound * self._item_bytes)
                for b, bound in enumerate(self.bounds)
            ]
            self._part_chunks = [[len(index[b].offsets) for index in indexes] for b in range(len(self.bounds))]
            self._check_counts()
            self.starts = np.cumsum([0, *(shape.rows for shape in self.layout)])
            self._index = self._whole_index(indexes)
            chunk_bytes = [self.chunk_rows * (shape.row_bytes + 3) for shape in self.layout]
            self._slots = [max(1, cache_bytes // len(self.layout) // size) for size in chunk_bytes]
            self._reader = self._checked_reader()
        except BaseException:
            self.close()
            raise

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
                raise self.explain(fault) from None
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
            DatasetError: damaged data, with file, dataset and chunk.
        """
        shares = tuple(shares or (plan.batch_size,))
        if sum(shares) != plan.batch_size or min(shares) < 0 or not 0 <= rank < len(shares):
            raise ValueError(f"shares {list(shares)} of rank {rank} do not make the batch of {plan.batch_size} rows")
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
        return bool(self._files.descriptors)

    def make_reader(self, slots: Sequence[int]) -> ChunkReader:
        """A reader of its own, with a cache of `slots` chunks per bucket.

        Raises:
            DatasetError: the split is closed.
        """
        if not self.is_open:
            raise self.closed_error()
        # A bound method would make a cycle, and a forgotten dataset would wait for the garbage collector.
        this = weakref.ref(self)

        def fallback(bucket: int, chunk: int) -> tuple[np.ndarray, ...]:
            data = this()
            if data is None:
                raise DatasetError("the dataset was closed while it was read")
            return data._read_through_h5py(bucket, chunk)

        return ChunkReader(
            bounds=self.bounds,
            rows=[shape.rows for shape in self.layout],
            slots=slots,
            chunk_rows=self.chunk_rows,
            wide=self._item_bytes == 4,
            ids=self.ids,
            codecs=load_codecs() or (0, 0),
            index=self._index,
            fallback=fallback,
            files=self._files,
        )

    def close(self) -> None:
        """Close the files, and the streams that read them; reading afterwards is an error."""
        for stream in list(self.streams):
            stream.close()
        with self._usable_lock():
            self._reader = None
            self._files.close()

    def closed_error(self) -> DatasetError:
        """What reading a closed split raises."""
        return DatasetError(f"{self.folder}: the split {self.split!r} is closed; open it again to read")

    def _usable_lock(self) -> threading.Lock:
        # In a forked child another thread of the parent may have held the lock, in the middle of filling the cache.
        if self._process != os.getpid():
            self._reader = self.make_reader(self._slots) if self._reader is not None else None
            self._lock, self._process = threading.Lock(), os.getpid()
        return self._lock

    def _checked_reader(self) -> ChunkReader:
        """A reader whose first row is what libhdf5 reads; otherwise one that reads through h5py."""
        reader = self.make_reader(self._slots)
        bucket = next((b for b, shape in enumerate(self.layout) if shape.rows), None)
        if bucket is None or self._index["offset"][self._first_chunk(bucket)] < 0:
            return reader
        batch = BatchBuffer(1, self.bounds[bucket]).view(1, self.bounds[bucket])
        try:
            tokens, lengths, stars = self._read_through_h5py(bucket, 0)
        except (DatasetError, OSError):
            return reader  # damaged: told when its rows are asked for
        try:
            reader.read(bucket, np.zeros(1, np.int64), batch.tokens, batch.lengths, batch.stars)
            same = np.array_equal(batch.tokens[0], tokens[0]) and (batch.lengths[0], batch.stars[0]) == (
                lengths[0],
                stars[0],
            )
        except ChunkFault as fault:
            same = fault.args[1] not in (CHECKSUM_FAULT, ROW_CHECKSUM_FAULT)
        if same:
            return self.make_reader(self._slots)  # with a cache and counters as if nothing had been read
        _warn_slow(f"{self.folder}/{self.split}", "its chunks do not lie where libhdf5 says")
        self._index["offset"] = np.full_like(self._index["offset"], -1)
        return self.make_reader(self._slots)

    def _first_chunk(self, bucket: int) -> int:
        return sum(-(-shape.rows // self.chunk_rows) for shape in self.layout[:bucket])

    def _open_part(self, part: dict[str, Any]) -> list[ChunkIndex]:
        path = self.folder / part["path"]
        try:
            self._files.descriptors.append(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
            with h5py.File(path, "r") as file:
                groups = [file.get(group_name(bound)) for bound in self.bounds]
                if not all(isinstance(group, h5py.Group) for group in groups):
                    raise DatasetError(f"{path}: a bucket's group is missing; {MANIFEST} names {self.bounds}")
                types = {
                    group["tokens"].dtype.name for group in groups if isinstance(group.get("tokens"), h5py.Dataset)
                }
                if types - {self.manifest["token_type"]}:
                    raise DatasetError(f"{path}: tokens are {types}, {MANIFEST} says {self.manifest['token_type']}")
                indexes = [
                    read_chunk_index(group, bound, self.chunk_rows)
                    for group, bound in zip(groups, self.bounds, strict=True)
                ]
        except FileNotFoundError:
            raise DatasetError(f"{path}: missing, but named in {MANIFEST}; copy or make the dataset again") from None
        except (OSError, RuntimeError, KeyError, IndexError, OverflowError) as error:
            raise DatasetError(f"{path}: not readable as HDF5 ({error}); copy or make the dataset again") from None
        digest = hashlib.sha256()
        for index in indexes:
            index.update_digest(digest)
        if digest.hexdigest() != part["index_digest"]:
            raise DatasetError(f"{path}: its chunk index does not fit {MANIFEST}: the file was changed or damaged")
        return indexes

    def _check_counts(self) -> None:
        wanted = self.manifest["splits"][self.split]["bucket_rows"]
        found = [shape.rows for shape in self.layout]
        if wanted != found:
            raise DatasetError(f"{self.folder}: {self.split} holds {found} rows per bucket, {MANIFEST} says {wanted}")
        for bound, chunks, rows in zip(self.bounds, self._part_chunks, found, strict=True):
            if sum(chunks) != -(-rows // self.chunk_rows):
                raise DatasetError(
                    f"{self.folder}: {self.split}, bucket {bound}: a part before the last one ends with a short chunk; "
                    "the dataset must be made again"
                )

    def _whole_index(self, indexes: list[list[ChunkIndex]]) -> dict[str, np.ndarray]:
        usable = load_codecs() is not None
        buckets = [self._bucket_index([index[b] for index in indexes], usable) for b in range(len(self.bounds))]
        return {name: np.concatenate([bucket[name] for bucket in buckets]) for name in buckets[0]}

    def _bucket_index(self, parts: list[ChunkIndex], usable: bool) -> dict[str, np.ndarray]:
        columns: dict[str, list[np.ndarray]] = {}
        for part, descriptor in zip(parts, self._files.descriptors, strict=True):
            chunks = len(part.offsets)
            first = np.arange(chunks, dtype=np.int64) * self.chunk_rows
            native = usable and part.lengths_offset >= 0 and part.stars_offset >= 0
            if chunks and not (native and part.offsets.min() >= 0):
                _warn_slow(f"{self.folder}/{self.split}", "a layout or filter that only libhdf5 reads")
            for name, values in (
                ("descriptor", np.full(chunks, descriptor, np.int32)),
                ("offset", part.offsets if native else np.full(chunks, -1, np.int64)),
                ("size", part.sizes),
                ("filters", part.filters),
                ("checksum", part.checksums),
                ("row_checksum", part.row_checksums),
                ("lengths_offset", part.lengths_offset + 2 * first),
                ("stars_offset", part.stars_offset + first),
            ):
                columns.setdefault(name, []).append(values)
        return {name: np.ascontiguousarray(np.concatenate(values)) for name, values in columns.items()}

    def _place(self, bucket: int, chunk: int) -> tuple[Path, int]:
        """The part that holds a bucket's chunk, and the chunk's number inside it."""
        ends = np.cumsum(self._part_chunks[bucket])
        part = int(np.searchsorted(ends, chunk, side="right"))
        return self.folder / self._parts[part]["path"], chunk - int(ends[part] - self._part_chunks[bucket][part])

    def explain(self, problem: ChunkFault) -> DatasetError:
        """A damaged chunk in words: file, dataset, chunk."""
        bucket, fault, chunk = problem.args
        path, inside = self._place(bucket, chunk)
        return DatasetError(
            f"{path}: /{group_name(self.bounds[bucket])}/tokens, chunk {inside}: {FAULTS[fault]}; "
            "copy the file again or make the dataset again"
        )

    def _read_through_h5py(self, bucket: int, chunk: int) -> tuple[np.ndarray, ...]:
        path, inside = self._place(bucket, chunk)
        entry, start = self._first_chunk(bucket) + chunk, inside * self.chunk_rows
        rows = min(self.chunk_rows, self.layout[bucket].rows - chunk * self.chunk_rows)
        try:
            with h5py.File(path, "r") as file:
                group = file[group_name(self.bounds[bucket])]
                tokens, lengths, stars = (group[name][start : start + rows] for name in ("tokens", "lengths", "stars"))
                whole = group["tokens"].chunks
                stored = group["tokens"].id.read_direct_chunk((start, 0))[1] if whole else tokens.tobytes()
        except (OSError, RuntimeError, KeyError, ValueError) as error:
            raise DatasetError(
                f"{path}: /{group_name(self.bounds[bucket])}/tokens, chunk {inside}: libhdf5 cannot read it ({error}); "
                "copy the file again or make the dataset again"
            ) from None
        # Against the checksums that were verified when the split was opened, not those in the file now.
        if xxh3_64_intdigest(stored) != self._index["checksum"][entry]:
            raise self.explain(ChunkFault(bucket, CHECKSUM_FAULT, chunk))
        if xxh3_64_intdigest(lengths.tobytes() + stars.tobytes()) != self._index["row_checksum"][entry]:
            raise self.explain(ChunkFault(bucket, ROW_CHECKSUM_FAULT, chunk))
        return tokens, lengths, stars


class _Files:
    """Open descriptors, closed when nobody holds this any more: a reader may outlive its dataset by a moment."""

    def __init__(self) -> None:
        self.descriptors: list[int] = []
        self._finish = weakref.finalize(self, _close_descriptors, self.descriptors)

    def close(self) -> None:
        """Close them all."""
        _close_descriptors(self.descriptors)


def _close_descriptors(descriptors: list[int]) -> None:
    while descriptors:
        os.close(descriptors.pop())


def _warn_slow(where: str, why: str) -> None:
    warnings.warn(f"{where}: {why}; reading goes through h5py, several times slower", RuntimeWarning, stacklevel=2)


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
