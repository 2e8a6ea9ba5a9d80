"""The part files of a split: opened, their chunk indexes checked and joined, and read through libhdf5 where need be."""

from __future__ import annotations

import hashlib
import os
import warnings
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin  # noqa: F401  (registers the LZ4 filter with h5py, for the slow way)
import numpy as np
from xxhash import xxh3_64_intdigest

from native.codecs import load_codecs
from native.format import MANIFEST, ChunkIndex, DatasetError, group_name, read_chunk_index
from native.reader import CHECKSUM_FAULT, FAULTS, ROW_CHECKSUM_FAULT, ChunkFault


class Parts:
    """All parts of one split. Its files stay open as long as anybody holds it, or until it is closed.

    Args:
        folder: the dataset's.
        manifest: its manifest, checked.
        split: which one.

    Raises:
        DatasetError: a part is missing, damaged, or not what the manifest says.
    """

    def __init__(self, folder: Path, manifest: Mapping[str, Any], split: str) -> None:
        self._where, self._folder, self._manifest = f"{folder}/{split}", folder, manifest
        self._bounds: list[int] = manifest["bucket_bounds"]
        self._chunk_rows: int = manifest["chunk_rows"]
        self._parts = [part for part in manifest["parts"] if part["path"].split("/")[0] == split]
        self._descriptors: list[int] = []
        self._finish = weakref.finalize(self, _close, self._descriptors)
        try:
            indexes = [self._open(part) for part in self._parts]
        except DatasetError:
            self.close()
            raise
        self.rows = [sum(index[b].rows for index in indexes) for b in range(len(self._bounds))]
        """rows of each bucket"""
        self._chunks = [[len(index[b].offsets) for index in indexes] for b in range(len(self._bounds))]
        self._check_rows(manifest["splits"][split]["bucket_rows"])
        usable = load_codecs() is not None
        buckets = [self._bucket_index([index[b] for index in indexes], usable) for b in range(len(self._bounds))]
        self.index = {name: np.concatenate([bucket[name] for bucket in buckets]) for name in buckets[0]}
        """arrays with an entry per chunk, bucket after bucket, as ChunkReader takes them"""

    @property
    def is_open(self) -> bool:
        """Whether the files are open."""
        return bool(self._descriptors)

    def close(self) -> None:
        """Close the files."""
        _close(self._descriptors)

    def first_chunk(self, bucket: int) -> int:
        """The entry of a bucket's first chunk in the index."""
        return sum(map(sum, self._chunks[:bucket]))

    def use_libhdf5(self, why: str) -> None:
        """Have all chunks read through h5py from now on, with a warning."""
        self.index["offset"] = np.full_like(self.index["offset"], -1)
        self._warn_slow(why)

    def explain(self, problem: ChunkFault) -> DatasetError:
        """A damaged chunk in words: file, dataset, chunk."""
        bucket, fault, chunk = problem.args
        return DatasetError(
            f"{self._name(bucket, chunk)}: {FAULTS[fault]}; copy the file again or make the dataset again"
        )

    def _name(self, bucket: int, chunk: int) -> str:
        path, inside = self._place(bucket, chunk)
        return f"{path}: /{group_name(self._bounds[bucket])}/tokens, chunk {inside}"

    def read_through_h5py(self, bucket: int, chunk: int) -> tuple[np.ndarray, ...]:
        """A chunk's tokens, lengths and stars, as libhdf5 reads them.

        Raises:
            DatasetError: it cannot, or they do not fit the checksums.
        """
        path, inside = self._place(bucket, chunk)
        entry, start = self.first_chunk(bucket) + chunk, inside * self._chunk_rows
        rows = min(self._chunk_rows, self.rows[bucket] - chunk * self._chunk_rows)
        try:
            with h5py.File(path, "r") as file:
                group = file[group_name(self._bounds[bucket])]
                tokens, lengths, stars = (group[name][start : start + rows] for name in ("tokens", "lengths", "stars"))
                chunked = group["tokens"].chunks is not None
                stored = group["tokens"].id.read_direct_chunk((start, 0))[1] if chunked else tokens.tobytes()
        except (OSError, RuntimeError, KeyError, ValueError) as error:
            raise DatasetError(
                f"{self._name(bucket, chunk)}: libhdf5 cannot read it ({error}); "
                "copy the file again or make the dataset again"
            ) from None
        # Against the checksums that were verified when the split was opened, not those in the file now.
        if xxh3_64_intdigest(stored) != self.index["checksum"][entry]:
            raise self.explain(ChunkFault(bucket, CHECKSUM_FAULT, chunk))
        if xxh3_64_intdigest(lengths.tobytes() + stars.tobytes()) != self.index["row_checksum"][entry]:
            raise self.explain(ChunkFault(bucket, ROW_CHECKSUM_FAULT, chunk))
        return tokens, lengths, stars

    def _open(self, part: dict[str, Any]) -> list[ChunkIndex]:
        path = self._folder / part["path"]
        try:
            self._descriptors.append(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
            with h5py.File(path, "r") as file:
                groups = [file.get(group_name(bound)) for bound in self._bounds]
                if not all(isinstance(group, h5py.Group) for group in groups):
                    raise DatasetError(f"{path}: a bucket's group is missing; {MANIFEST} names {self._bounds}")
                types = {
                    group["tokens"].dtype.name for group in groups if isinstance(group.get("tokens"), h5py.Dataset)
                }
                if types - {self._manifest["token_type"]}:
                    raise DatasetError(f"{path}: tokens are {types}, {MANIFEST} says {self._manifest['token_type']}")
                indexes = [
                    read_chunk_index(group, bound, self._chunk_rows)
                    for group, bound in zip(groups, self._bounds, strict=True)
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

    def _check_rows(self, wanted: list[int]) -> None:
        if wanted != self.rows:
            raise DatasetError(f"{self._where}: holds {self.rows} rows per bucket, {MANIFEST} says {wanted}")
        for bound, chunks, rows in zip(self._bounds, self._chunks, self.rows, strict=True):
            if sum(chunks) != -(-rows // self._chunk_rows):
                raise DatasetError(
                    f"{self._where}: bucket {bound}: a part before the last one ends with a short chunk; "
                    "the dataset must be made again"
                )

    def _bucket_index(self, parts: list[ChunkIndex], usable: bool) -> dict[str, np.ndarray]:
        columns: dict[str, list[np.ndarray]] = {}
        for part, descriptor in zip(parts, self._descriptors, strict=True):
            chunks = len(part.offsets)
            first = np.arange(chunks, dtype=np.int64) * self._chunk_rows
            native = usable and part.lengths_offset >= 0 and part.stars_offset >= 0
            if chunks and not (native and part.offsets.min() >= 0):
                self._warn_slow("a layout or filter that only libhdf5 reads")
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
        ends = np.cumsum(self._chunks[bucket])
        part = int(np.searchsorted(ends, chunk, side="right"))
        return self._folder / self._parts[part]["path"], chunk - int(ends[part] - self._chunks[bucket][part])

    def _warn_slow(self, why: str) -> None:
        warnings.warn(
            f"{self._where}: {why}; reading goes through h5py, several times slower", RuntimeWarning, stacklevel=2
        )


def _close(descriptors: list[int]) -> None:
    while descriptors:
        os.close(descriptors.pop())
