"""A split of a dataset, opened for reading: rows in, a padded batch out."""

from __future__ import annotations

import hashlib
import os
import threading
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin  # noqa: F401  (registers the LZ4 filter with h5py, for the fallback)
import numpy as np
from xxhash import xxh3_64_intdigest

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
from native.reader import CHECKSUM_FAULT, FAULTS, ROW_CHECKSUM_FAULT, ChunkCache, ChunkFault
from native.text import FIRST_WORD_ID, SPLITS

DEFAULT_CACHE_BYTES = 512 << 20


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
    """Memory for batches of up to `rows` rows of up to `bound` tokens, reused from batch to batch."""

    def __init__(self, rows: int, bound: int) -> None:
        self._tokens = np.empty(rows * bound, np.int32)
        self._lengths = np.empty(rows, np.int32)
        self._stars = np.empty(rows, np.uint8)
        for array in (self._tokens, self._lengths, self._stars):
            array.fill(0)  # the pages are touched now, not in the first batch

    def view(self, rows: int, bound: int) -> Batch:
        """A batch of this shape in the buffer's memory; it replaces what the buffer held."""
        return Batch(self._tokens[: rows * bound].reshape(rows, bound), self._lengths[:rows], self._stars[:rows])


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
        self._descriptors: list[int] = []
        self._caches: list[ChunkCache] = []
        self._lock = threading.Lock()
        try:
            indexes = [self._open_part(part) for part in self._parts]
            self.layout = [
                BucketShape(bound, sum(index[b].rows for index in indexes), self.chunk_rows, bound * self._item_bytes)
                for b, bound in enumerate(self.bounds)
            ]
            self._part_chunks = [[len(index[b].offsets) for index in indexes] for b in range(len(self.bounds))]
            self._check_counts()
            self.starts = np.cumsum([0, *(shape.rows for shape in self.layout)])
            self._caches = self._make_caches(indexes, cache_bytes)
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
        """Chunks read and decoded since the split was opened."""
        return sum(cache.chunks_decoded for cache in self._caches)

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
            DatasetError: damaged data, with file, dataset and chunk.
        """
        bound = self.layout[bucket].bound
        batch = (buffer or BatchBuffer(len(rows), bound)).view(len(rows), bound)
        with self._lock:
            if not self._caches:
                raise DatasetError(f"{self.folder}: the split {self.split!r} is closed; open it again to read")
            try:
                self._caches[bucket].gather(
                    np.ascontiguousarray(rows, np.int64), batch.tokens, batch.lengths, batch.stars
                )
            except ChunkFault as fault:
                raise self._explain(bucket, *fault.args) from None
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
        batch = BatchBuffer(len(wanted), bound).view(len(wanted), bound)
        for b in np.unique(buckets):
            places = np.flatnonzero(buckets == b)
            part = self.read_bucket(int(b), wanted[places] - self.starts[b])
            batch.tokens[places, : self.layout[b].bound] = part.tokens
            batch.lengths[places] = part.lengths
            batch.stars[places] = part.stars
        return batch

    def close(self) -> None:
        """Close the files; reading afterwards is an error."""
        with self._lock:
            self._caches = []
            while self._descriptors:
                os.close(self._descriptors.pop())

    def _open_part(self, part: dict[str, Any]) -> list[ChunkIndex]:
        path = self.folder / part["path"]
        try:
            self._descriptors.append(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
            with h5py.File(path, "r") as file:
                groups = [file.get(group_name(bound)) for bound in self.bounds]
                if not all(isinstance(group, h5py.Group) for group in groups):
                    raise DatasetError(f"{path}: a bucket's group is missing; {MANIFEST} names {self.bounds}")
                indexes = [
                    read_chunk_index(group, bound, self.chunk_rows)
                    for group, bound in zip(groups, self.bounds, strict=True)
                ]
        except FileNotFoundError:
            raise DatasetError(f"{path}: missing, but named in {MANIFEST}; copy or make the dataset again") from None
        except (OSError, RuntimeError, KeyError) as error:
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

    def _make_caches(self, indexes: list[list[ChunkIndex]], cache_bytes: int) -> list[ChunkCache]:
        codecs = load_codecs()
        caches = []
        for b, shape in enumerate(self.layout):
            block = self.chunk_rows * (shape.row_bytes + 3)
            caches.append(
                ChunkCache(
                    bound=shape.bound,
                    rows=shape.rows,
                    chunk_rows=self.chunk_rows,
                    wide=self._item_bytes == 4,
                    ids=self.ids,
                    slots=max(1, cache_bytes // len(self.layout) // block),
                    codecs=codecs or (0, 0),
                    index=self._bucket_index([index[b] for index in indexes], usable=codecs is not None),
                    fallback=lambda chunk, b=b: self._read_through_h5py(b, chunk),
                )
            )
        return caches

    def _bucket_index(self, parts: list[ChunkIndex], usable: bool) -> dict[str, np.ndarray]:
        columns: dict[str, list[np.ndarray]] = {}
        for part, descriptor in zip(parts, self._descriptors, strict=True):
            chunks = len(part.offsets)
            first = np.arange(chunks, dtype=np.int64) * self.chunk_rows
            native = usable and part.lengths_offset >= 0 and part.stars_offset >= 0
            if chunks and not (native and part.offsets.min() >= 0):
                warnings.warn(
                    f"{self.folder}/{self.split}: a layout or filter that only libhdf5 reads; "
                    "reading goes through h5py, several times slower",
                    RuntimeWarning,
                    stacklevel=2,
                )
            for name, values in (
                ("descriptor", np.full(chunks, descriptor, np.int32)),
                ("offset", part.offsets if native else np.full(chunks, -1, np.int64)),
                ("size", part.sizes),
                ("compressed", part.compressed),
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

    def _explain(self, bucket: int, fault: int, chunk: int) -> DatasetError:
        path, inside = self._place(bucket, chunk)
        return DatasetError(
            f"{path}: /{group_name(self.bounds[bucket])}/tokens, chunk {inside}: {FAULTS[fault]}; "
            "copy the file again or make the dataset again"
        )

    def _read_through_h5py(self, bucket: int, chunk: int) -> tuple[np.ndarray, ...]:
        path, inside = self._place(bucket, chunk)
        start = inside * self.chunk_rows
        with h5py.File(path, "r") as file:
            group = file[group_name(self.bounds[bucket])]
            tokens, lengths, stars = (
                group[name][start : start + self.chunk_rows] for name in ("tokens", "lengths", "stars")
            )
            stored = group["tokens"].id.read_direct_chunk((start, 0))[1] if group["tokens"].chunks else tokens.tobytes()
            if xxh3_64_intdigest(stored) != group["checksums"][inside]:
                raise self._explain(bucket, CHECKSUM_FAULT, chunk)
            if xxh3_64_intdigest(lengths.tobytes() + stars.tobytes()) != group["row_checksums"][inside]:
                raise self._explain(bucket, ROW_CHECKSUM_FAULT, chunk)
        return tokens, lengths, stars


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
