"""The chunk index of a part, and the file beside the part that holds it.

A chunk is read from its place in the file without libhdf5. Where the chunks lie stands in HDF5's own metadata, which
only libhdf5 reads, and a damaged file can crash it. So the writer asks libhdf5 once and leaves the answer in
part-NNNNN.index, all numbers little-endian:

    size of the part's file, rows of each bucket, int64, then for each bucket in the order of their bounds:
    offsets, sizes int64[chunks]   filters uint8[chunks]   checksums, row_checksums uint64[chunks]
    offset of lengths, offset of stars, rows int64

The SHA-256 of all but the size and the rows at the beginning is the part's index_digest in the manifest.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from native.files import read_file, write_durably
from native.format import MANIFEST, DatasetError

COLUMNS = (("offsets", "<i8"), ("sizes", "<i8"), ("filters", "u1"), ("checksums", "<u8"), ("row_checksums", "<u8"))
CHUNK_BYTES = 33
"""of one chunk in the index"""
END_BYTES = 24
"""of what follows a bucket's chunks"""
MAX_CHUNKS = 1 << 24
"""of a part: half a gigabyte of index"""
KNOWN_FILTERS = 3


@dataclass(frozen=True)
class ChunkIndex:
    """Where the chunks of one bucket lie in one part; arrays have one entry per chunk."""

    offsets: np.ndarray
    """int64: byte offset of the stored token chunk in the file; -1: only libhdf5 can read it"""
    sizes: np.ndarray
    """int64: stored bytes"""
    filters: np.ndarray
    """uint8: bit 0 LZ4, bit 1 bytes split into planes (HDF5's shuffle filter)"""
    checksums: np.ndarray
    row_checksums: np.ndarray
    lengths_offset: int
    stars_offset: int
    rows: int

    def to_bytes(self) -> bytes:
        """Every field in a fixed order and byte order."""
        columns = [np.ascontiguousarray(getattr(self, name), kind).tobytes() for name, kind in COLUMNS]
        return b"".join([*columns, np.array([self.lengths_offset, self.stars_offset, self.rows], "<i8").tobytes()])

    def misplaced(self, size: int) -> str | None:
        """What cannot be in a file of `size` bytes, in words; None where all can.

        No sum is made of numbers that were not bounded before: they may be anything.
        """
        native = self.offsets != -1
        offsets, sizes = self.offsets[native], self.sizes[native]
        outside = (sizes < 1) | (sizes > size)
        outside |= (offsets < 0) | (offsets > size - np.where(outside, 0, sizes))
        if outside.any():
            return f"chunk {int(np.flatnonzero(native)[outside.argmax()])} lies outside the file's {size:,} bytes"
        if (self.filters > KNOWN_FILTERS).any():
            return f"chunk {int((self.filters > KNOWN_FILTERS).argmax())} has filters that there are not"
        for name, offset, each in (("lengths", self.lengths_offset, 2), ("stars", self.stars_offset, 1)):
            if self.rows and offset != -1 and not 0 <= offset <= size - each * self.rows:
                return f"{name} lie outside the file's {size:,} bytes"
        return None


@dataclass(frozen=True)
class IndexFile:
    """What a part's index file holds."""

    part_bytes: int
    """size of the part's file"""
    buckets: list[ChunkIndex]


def index_path(part: Path) -> Path:
    """The index file of a part."""
    return part.with_suffix(".index")


def index_digest(indexes: Sequence[ChunkIndex]) -> str:
    """The part's index_digest in the manifest, from the indexes of its buckets."""
    return hashlib.sha256(b"".join(index.to_bytes() for index in indexes)).hexdigest()


def write_index(part: Path, indexes: Sequence[ChunkIndex]) -> str:
    """Write the index file of a part that is complete, durably; returns its index_digest.

    Raises:
        DatasetError: more chunks than an index may have.
        OSError: it cannot be written.
    """
    chunks = sum(len(index.offsets) for index in indexes)
    if chunks > MAX_CHUNKS:
        raise DatasetError(f"{part}: {chunks:,} chunks, more than {MAX_CHUNKS:,}: take larger chunk_rows")
    head = np.array([part.stat().st_size, *(index.rows for index in indexes)], "<i8").tobytes()
    write_durably(index_path(part), head + b"".join(index.to_bytes() for index in indexes))
    return index_digest(indexes)


def read_index(part: Path, buckets: int, chunk_rows: int, digest: str) -> IndexFile | None:
    """Read a part's index file and check it; None where there is none, as in datasets of earlier versions.

    Args:
        part: the part's path.
        buckets: how many there are.
        chunk_rows: rows of a full chunk.
        digest: the manifest's index_digest.

    Raises:
        DatasetError: it is damaged, or belongs to another dataset.
    """
    path, head = index_path(part), 8 + 8 * buckets
    try:
        data = read_file(path, head + MAX_CHUNKS * CHUNK_BYTES + buckets * END_BYTES)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DatasetError(f"{path}: not readable ({error.strerror}); copy or make the dataset again") from None
    if len(data) < head or hashlib.sha256(memoryview(data)[head:]).hexdigest() != digest:
        raise DatasetError(
            f"{path}: does not fit its digest in {MANIFEST}: the file was changed or damaged; copy it again or make "
            "the dataset again"
        )
    part_bytes, *rows = np.frombuffer(data[:head], "<i8").tolist()  # whole numbers of Python's, which do not overflow
    chunks = [-(-count // chunk_rows) for count in rows]
    expected = head + sum(chunks) * CHUNK_BYTES + buckets * END_BYTES
    if min(rows) < 0 or len(data) != expected:
        raise DatasetError(f"{path}: its size does not fit the rows that it names; copy it again")
    found, at = [], head
    for count, own in zip(rows, chunks, strict=True):
        index, at = _parse(data, at, own)
        if index.rows != count:
            raise DatasetError(f"{path}: names {count} rows of a bucket that has {index.rows}; copy it again")
        found.append(index)
    return IndexFile(part_bytes, found)


def _parse(data: bytes, at: int, chunks: int) -> tuple[ChunkIndex, int]:
    columns: dict[str, Any] = {}
    for name, kind in COLUMNS:
        columns[name] = np.frombuffer(data, kind, chunks, at)
        at += columns[name].nbytes
    lengths_offset, stars_offset, rows = np.frombuffer(data, "<i8", 3, at).tolist()
    index = ChunkIndex(**columns, lengths_offset=lengths_offset, stars_offset=stars_offset, rows=rows)
    return index, at + END_BYTES
