"""Writes the parts of a dataset, each by itself: any process may write any of them (docs/format.md)."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin
import numpy as np
import xxhash

from native.files import write_durably
from native.format import (
    MAX_CHUNK_BYTES,
    MAX_CHUNK_ROWS,
    DatasetError,
    group_name,
    part_rows,
)
from native.hdf5 import read_hdf5_index
from native.index import write_index
from native.text import FIRST_WORD_ID, SPLITS

DEFAULT_CHUNK_ROWS = 2048
LZ4_PLANES = {"shuffle": True, **hdf5plugin.LZ4()}
"""h5py's options for tokens: most ids are small, so that their upper bytes compress well where they stand together"""
FLUSHED_CHUNKS = 2
"""chunks of a bucket that are written at a time: a file's bytes must not depend on how its rows came"""
PART_BYTES = 32 << 20
"""decoded tokens per part file, about: parts are written by several processes"""
_numbers = itertools.count()
_GROWTH = 1 << 20
"""bytes by which a part's memory grows"""
MAX_PARTS = 512
"""of a split; beyond them parts are larger: a reader holds each open, and many systems allow 1,024 files"""


@dataclass(frozen=True)
class Part:
    """One part file to be."""

    split: str
    path: str
    """below the dataset's folder"""
    first: tuple[int, ...]
    """its first row in each bucket of the split"""
    rows: tuple[int, ...]
    """its rows per bucket"""


@dataclass(frozen=True)
class Layout:
    """What the writers of all parts must know.

    Raises:
        DatasetError: the values do not fit each other.
    """

    bounds: tuple[int, ...]
    """padded length of each bucket, ascending, in tokens"""
    rows: dict[str, tuple[int, ...]]
    """exact number of rows per split and bucket"""
    words: int
    """of the vocabulary"""
    chunk_rows: int = DEFAULT_CHUNK_ROWS
    compress: bool = True
    """byte shuffle and LZ4; False stores the rows as they are"""
    part_bytes: int = field(default_factory=lambda: PART_BYTES)
    """decoded tokens of a part, about"""

    def __post_init__(self) -> None:
        if list(self.bounds) != sorted(set(self.bounds)) or not self.bounds or not 0 < self.bounds[-1] < 10_000:
            raise DatasetError(f"bucket bounds {list(self.bounds)} must ascend and lie in 1..9999")
        if not 1 <= self.chunk_rows <= MAX_CHUNK_ROWS:
            raise DatasetError(f"chunk_rows {self.chunk_rows} must lie in 1..{MAX_CHUNK_ROWS}")
        if self.chunk_rows * self.bounds[-1] * self.token_type.itemsize > MAX_CHUNK_BYTES:
            raise DatasetError(f"chunk_rows {self.chunk_rows}: a chunk would have more than {MAX_CHUNK_BYTES:,} bytes")
        if set(self.rows) != set(SPLITS) or any(len(counts) != len(self.bounds) for counts in self.rows.values()):
            raise DatasetError(f"rows must give one number per bucket ({len(self.bounds)}) for each split")

    @property
    def token_type(self) -> np.dtype[Any]:
        """Of a token id, little-endian."""
        return np.dtype("<u2" if self.words + FIRST_WORD_ID <= 1 << 16 else "<u4")

    def parts(self, split: str) -> list[Part]:
        """The parts of a split, one at least."""
        total = sum(count * bound for count, bound in zip(self.rows[split], self.bounds, strict=True))
        number = min(max(1, -(-total * self.token_type.itemsize // self.part_bytes)), MAX_PARTS)
        per_bucket = [part_rows(count, self.chunk_rows, number) for count in self.rows[split]]
        first = [[0, *itertools.accumulate(counts)] for counts in per_bucket]
        return [
            Part(
                split,
                f"{split}/part-{index:05d}.h5",
                tuple(starts[index] for starts in first),
                tuple(counts[index] for counts in per_bucket),
            )
            for index in range(number)
        ]

    def check_rows(self, bucket: int, tokens: np.ndarray, lengths: np.ndarray, stars: np.ndarray) -> None:
        """Raise DatasetError for rows that do not belong into a bucket."""
        bound, words = self.bounds[bucket], self.words + FIRST_WORD_ID
        if tokens.shape != (len(lengths), bound) or len(stars) != len(lengths):
            raise DatasetError(
                f"tokens {tokens.shape}, lengths {lengths.shape} and stars {stars.shape} do not fit bucket {bound}"
            )
        if tokens.min() < 0 or tokens.max() >= words:
            raise DatasetError(f"token ids must lie in 0..{words - 1}")
        if lengths.min() < 1 or lengths.max() > bound or stars.min() < 1 or stars.max() > 5:
            raise DatasetError(f"lengths must lie in 1..{bound} and stars in 1..5")


class PartWriter:
    """Writes one part, in memory until it is whole.

    libhdf5 never writes to the disk: where a disk is full it fails when it closes the file too, and crashes later.

    Args:
        folder: of the dataset.
        layout: of the dataset.
        part: which one.
    """

    def __init__(self, folder: Path, layout: Layout, part: Part) -> None:
        self._layout, self._part = layout, part
        self._path = folder / part.path
        # libhdf5 takes two files in memory with one name for the same.
        name = f"{part.path}, {next(_numbers)}"
        self._file = h5py.File(
            name, "w", libver=("v110", "v110"), driver="core", backing_store=False, block_size=_GROWTH
        )
        self._written = [0] * len(part.rows)
        self._tokens_written = 0
        self._stars = np.zeros(5, np.int64)
        for bound, count in zip(layout.bounds, part.rows, strict=True):
            group = self._file.create_group(group_name(bound))
            # maxshape leaves room for a last chunk that is wider than the rows there are
            padded = -(-count // layout.chunk_rows) * layout.chunk_rows
            group.create_dataset(
                "tokens",
                (count, bound),
                layout.token_type,
                chunks=(layout.chunk_rows, bound),
                maxshape=(max(padded, layout.chunk_rows), bound),
                **(LZ4_PLANES if layout.compress else {}),
            )
            group.create_dataset("lengths", (count,), "<u2")
            group.create_dataset("stars", (count,), "|u1")
        # Rows wait here until their chunks are whole: a chunk is compressed once.
        self._waiting: list[list[tuple[np.ndarray, ...]]] = [[] for _ in part.rows]
        self._held = [0] * len(part.rows)

    @property
    def full(self) -> bool:
        """Whether all rows have come."""
        return self._written == list(self._part.rows)

    def take(self, bucket: int, tokens: np.ndarray, lengths: np.ndarray, stars: np.ndarray) -> int:
        """Append as many of the rows as this part still takes; returns how many.

        Args:
            bucket: index into the layout's bounds.
            tokens: [n, bounds[bucket]], padded on the right with 0.
            lengths: [n], 1..bound.
            stars: [n], 1..5.
        """
        unit, rows = FLUSHED_CHUNKS * self._layout.chunk_rows, self._part.rows[bucket]
        count = min(len(tokens), rows - self._written[bucket] - self._held[bucket])
        done = 0
        while done < count:
            size = min(count - done, unit - self._held[bucket])
            rows_now = slice(done, done + size)
            self._waiting[bucket].append((tokens[rows_now].copy(), lengths[rows_now].copy(), stars[rows_now].copy()))
            self._held[bucket] += size
            done += size
            if self._held[bucket] == min(unit, rows - self._written[bucket]):
                self._flush(bucket)
        return count

    def close(self) -> dict[str, Any]:
        """Add checksums; write the part under another name, flush it to disk, rename it; then the index file.

        Returns:
            Its entry in the manifest, under "entry"; and beside it "stored_bytes" and "stars", rows per star.

        Raises:
            DatasetError: rows are missing.
            OSError: disk full, ...; there is no part then.
        """
        part, layout = self._part, self._layout
        if not self.full:
            raise DatasetError(f"{part.path}: {self._written} rows per bucket written, {list(part.rows)} announced")
        for bound, count in zip(layout.bounds, part.rows, strict=True):
            self._add_checksums(self._file[group_name(bound)], count)
        # The first flush may take room at the end that it does not fill; the second gives it back, as closing does.
        self._file.flush()
        self._file.flush()
        image = self._file.id.get_file_image()
        self._file.close()
        self._path.parent.mkdir(exist_ok=True)
        write_durably(self._path, image)
        indexes = read_hdf5_index(self._path, layout.bounds, layout.chunk_rows, layout.token_type.name)
        entry = {
            "path": part.path,
            "rows": sum(part.rows),
            "tokens": self._tokens_written,
            "digest": hashlib.sha256(image).hexdigest(),
            "index_digest": write_index(self._path, indexes),
        }
        stored = sum(int(index.sizes.sum()) for index in indexes)
        return {"entry": entry, "stored_bytes": stored, "stars": self._stars.tolist()}

    def _flush(self, bucket: int) -> None:
        tokens, lengths, stars = (np.concatenate(column) for column in zip(*self._waiting[bucket], strict=True))
        start = self._written[bucket]
        group = self._file[group_name(self._layout.bounds[bucket])]
        for name, values in (("tokens", tokens), ("lengths", lengths), ("stars", stars)):
            group[name][start : start + len(values)] = values
        self._written[bucket] += len(tokens)
        self._tokens_written += int(lengths.sum())
        self._stars += np.bincount(stars, minlength=6)[1:6]
        self._waiting[bucket], self._held[bucket] = [], 0

    def _add_checksums(self, group: h5py.Group, rows: int) -> None:
        starts = range(0, rows, self._layout.chunk_rows)
        stored = [xxhash.xxh3_64_intdigest(group["tokens"].id.read_direct_chunk((start, 0))[1]) for start in starts]
        sides = [_side_checksum(group, slice(start, start + self._layout.chunk_rows)) for start in starts]
        group.create_dataset("checksums", data=np.array(stored, "<u8"))
        group.create_dataset("row_checksums", data=np.array(sides, "<u8"))


def _side_checksum(group: h5py.Group, rows: slice) -> int:
    return xxhash.xxh3_64_intdigest(group["lengths"][rows].tobytes() + group["stars"][rows].tobytes())


def stars_of(closed: Sequence[dict[str, Any]]) -> list[int]:
    """Rows per star over what `close` returned for some parts."""
    return [sum(part["stars"][star] for part in closed) for star in range(5)]
