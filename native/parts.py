"""The part files of a split: opened, their chunk indexes verified and joined, read through libhdf5 where need be."""

from __future__ import annotations

import hashlib
import os
import warnings
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from xxhash import xxh3_64_intdigest

from native.codecs import load_codecs
from native.files import open_regular
from native.format import MANIFEST, TOKEN_BYTES, DatasetError, group_name
from native.hdf5 import StoredChunk, read_hdf5_chunk, read_hdf5_index
from native.index import ChunkIndex, index_digest, read_index
from native.reader import CHECKSUM_FAULT, FAULTS, ROW_CHECKSUM_FAULT, ChunkFault, ChunkReader
from native.text import FIRST_WORD_ID

AGAIN = "copy the file again or make the dataset again"
PIECE = 1 << 20


class Part:
    """One part file, and where its chunks lie.

    libhdf5 opens it only where that cannot be helped, and only after all of its bytes were compared with the
    manifest's digest; what is verified and what is opened is the file behind the descriptor, whatever its name becomes.

    Args:
        path: the file's.
        descriptor: the file, opened.
        entry: the part's in the manifest.
        manifest: the manifest, checked.

    Raises:
        DatasetError: it is damaged, or not what the manifest says.
    """

    def __init__(self, path: Path, descriptor: int, entry: Mapping[str, Any], manifest: Mapping[str, Any]) -> None:
        self.path, self.descriptor = path, descriptor
        self._entry, self._manifest = entry, manifest
        self._bounds: list[int] = manifest["bucket_bounds"]
        self._chunk_rows: int = manifest["chunk_rows"]
        self._verified: tuple[int, ...] | None = None
        found = read_index(path, len(self._bounds), self._chunk_rows, entry["index_digest"])
        if found is not None:
            self._check_size(found.part_bytes)
        self.buckets = self._hdf5_index() if found is None else found.buckets
        """the chunk index of each bucket"""
        self._check()

    def read_chunk(self, where: str, bucket: int, chunk: int, rows: int) -> StoredChunk:
        """A chunk as libhdf5 reads it; `where` names it in errors.

        Raises:
            DatasetError: it cannot, or the file does not fit its digests.
        """
        if self._verified != _state(self.descriptor):
            self._hdf5_index()
        return read_hdf5_chunk(where, self._source, self._bounds[bucket], chunk * self._chunk_rows, rows)

    @property
    def _source(self) -> str:
        return f"/proc/self/fd/{self.descriptor}"

    def _hdf5_index(self) -> list[ChunkIndex]:
        state = _state(self.descriptor)
        try:
            digest = descriptor_digest(self.descriptor)
        except OSError as error:
            raise DatasetError(f"{self.path}: not readable ({error.strerror}); {AGAIN}") from None
        if digest != self._entry["digest"]:
            raise DatasetError(
                f"{self.path}: does not fit its digest in {MANIFEST}: the file was changed or damaged; {AGAIN}"
            )
        token_type = self._manifest["token_type"]
        found = read_hdf5_index(self.path, self._bounds, self._chunk_rows, token_type, self._source)
        if index_digest(found) != self._entry["index_digest"]:
            raise DatasetError(f"{self.path}: its chunk index does not fit {MANIFEST}; the dataset must be made again")
        self._verified = state
        return found

    def _check_size(self, wanted: int) -> None:
        size = os.fstat(self.descriptor).st_size
        if size != wanted:
            raise DatasetError(
                f"{self.path}: has {size:,} bytes, its index file says {wanted:,}: it was cut or changed; {AGAIN}"
            )

    def _check(self) -> None:
        size = os.fstat(self.descriptor).st_size
        for index, bound in zip(self.buckets, self._bounds, strict=True):
            problem = index.misplaced(size)
            if problem:
                raise DatasetError(f"{self.path}: /{group_name(bound)}: {problem}; {AGAIN}")
        rows = sum(index.rows for index in self.buckets)
        if rows != self._entry["rows"]:
            raise DatasetError(f"{self.path}: holds {rows} rows, {MANIFEST} says {self._entry['rows']}; {AGAIN}")


class Parts:
    """Parts of one split, as a rule all. Their files stay open as long as anybody holds it, or until it is closed.

    Args:
        folder: the dataset's.
        manifest: its manifest, checked.
        entries: the manifest's entries of these parts, in their order.

    Raises:
        DatasetError: a part is missing, damaged, or not what the manifest says.
    """

    def __init__(self, folder: Path, manifest: Mapping[str, Any], entries: Sequence[Mapping[str, Any]]) -> None:
        self._where, self._manifest = f"{folder}/{entries[0]['path'].partition('/')[0]}", manifest
        self._bounds: list[int] = manifest["bucket_bounds"]
        self._chunk_rows: int = manifest["chunk_rows"]
        self._descriptors: list[int] = []
        self._finish = weakref.finalize(self, _close, self._descriptors)
        try:
            self.parts = [self._open(folder / entry["path"], entry) for entry in entries]
        except DatasetError:
            self.close()
            raise
        self.rows = [sum(part.buckets[b].rows for part in self.parts) for b in range(len(self._bounds))]
        """rows of each bucket"""
        self._chunks = [[len(part.buckets[b].offsets) for part in self.parts] for b in range(len(self._bounds))]
        self._check_chunks()
        usable = load_codecs() is not None
        buckets = [self._bucket_index(b, usable) for b in range(len(self._bounds))]
        self.index = {name: np.concatenate([bucket[name] for bucket in buckets]) for name in buckets[0]}
        """arrays with an entry per chunk, bucket after bucket, as ChunkReader takes them"""

    @property
    def is_open(self) -> bool:
        """Whether the files are open."""
        return bool(self._descriptors)

    def close(self) -> None:
        """Close the files."""
        _close(self._descriptors)

    def make_reader(self, slots: Sequence[int]) -> ChunkReader:
        """A reader of these parts, with a cache of `slots` chunks per bucket."""
        return ChunkReader(
            bounds=self._bounds,
            rows=self.rows,
            slots=slots,
            chunk_rows=self._chunk_rows,
            wide=TOKEN_BYTES[self._manifest["token_type"]] == 4,
            ids=self._manifest["vocabulary"]["words"] + FIRST_WORD_ID,
            codecs=load_codecs() or (0, 0),
            index=self.index,
            fallback=self.read_through_h5py,
            files=self,
        )

    def require_rows(self, wanted: Sequence[int]) -> None:
        """Check the rows of each bucket.

        Raises:
            DatasetError: other numbers than these.
        """
        if list(wanted) != self.rows:
            raise DatasetError(
                f"{self._where}: holds {self.rows} rows per bucket, {MANIFEST} says {list(wanted)}; the dataset must "
                "be made again"
            )

    def explain(self, problem: ChunkFault) -> DatasetError:
        """A damaged chunk in words: file, dataset, chunk."""
        bucket, fault, chunk = problem.args
        return DatasetError(f"{self._name(bucket, chunk)}: {FAULTS[fault]}; {AGAIN}")

    def read_through_h5py(self, bucket: int, chunk: int) -> tuple[np.ndarray, ...]:
        """A chunk's tokens, lengths and stars, as libhdf5 reads them.

        Raises:
            DatasetError: it cannot, or they do not fit the checksums.
        """
        part, inside = self._place(bucket, chunk)
        rows = min(self._chunk_rows, self.rows[bucket] - chunk * self._chunk_rows)
        found = part.read_chunk(self._name(bucket, chunk), bucket, inside, rows)
        index = part.buckets[bucket]
        if xxh3_64_intdigest(found.stored) != index.checksums[inside]:
            raise self.explain(ChunkFault(bucket, CHECKSUM_FAULT, chunk))
        if xxh3_64_intdigest(found.lengths.tobytes() + found.stars.tobytes()) != index.row_checksums[inside]:
            raise self.explain(ChunkFault(bucket, ROW_CHECKSUM_FAULT, chunk))
        return found.tokens, found.lengths, found.stars

    def _name(self, bucket: int, chunk: int) -> str:
        part, inside = self._place(bucket, chunk)
        return f"{part.path}: /{group_name(self._bounds[bucket])}/tokens, chunk {inside}"

    def _open(self, path: Path, entry: Mapping[str, Any]) -> Part:
        try:
            descriptor = open_regular(path)
        except FileNotFoundError:
            raise DatasetError(f"{path}: missing, but named in {MANIFEST}; copy or make the dataset again") from None
        except OSError as error:
            raise DatasetError(f"{path}: not readable ({error.strerror}); copy or make the dataset again") from None
        self._descriptors.append(descriptor)
        return Part(path, descriptor, entry, self._manifest)

    def _check_chunks(self) -> None:
        for bound, chunks, rows in zip(self._bounds, self._chunks, self.rows, strict=True):
            if sum(chunks) != -(-rows // self._chunk_rows):
                raise DatasetError(
                    f"{self._where}: bucket {bound}: a part before the last one ends with a short chunk; "
                    "the dataset must be made again"
                )

    def _bucket_index(self, bucket: int, usable: bool) -> dict[str, np.ndarray]:
        columns: dict[str, list[np.ndarray]] = {}
        for part in self.parts:
            index = part.buckets[bucket]
            chunks = len(index.offsets)
            first = np.arange(chunks, dtype=np.int64) * self._chunk_rows
            native = usable and index.lengths_offset >= 0 and index.stars_offset >= 0
            if chunks and not (native and index.offsets.min() >= 0):
                self._warn_slow("a layout or filter that only libhdf5 reads")
            for name, values in (
                ("descriptor", np.full(chunks, part.descriptor, np.int32)),
                ("offset", index.offsets if native else np.full(chunks, -1, np.int64)),
                ("size", index.sizes),
                ("filters", index.filters),
                ("checksum", index.checksums),
                ("row_checksum", index.row_checksums),
                ("lengths_offset", index.lengths_offset + 2 * first),
                ("stars_offset", index.stars_offset + first),
            ):
                columns.setdefault(name, []).append(values)
        return {name: np.ascontiguousarray(np.concatenate(values)) for name, values in columns.items()}

    def _place(self, bucket: int, chunk: int) -> tuple[Part, int]:
        """The part that holds a bucket's chunk, and the chunk's number inside it."""
        ends = np.cumsum(self._chunks[bucket])
        part = int(np.searchsorted(ends, chunk, side="right"))
        return self.parts[part], chunk - int(ends[part] - self._chunks[bucket][part])

    def _warn_slow(self, why: str) -> None:
        warnings.warn(
            f"{self._where}: {why}; reading goes through h5py, several times slower", RuntimeWarning, stacklevel=2
        )


def descriptor_digest(descriptor: int, tell: Callable[[int], object] = lambda size: None) -> str:
    """SHA-256 of a file's bytes, in hexadecimal; `tell` is called with the size of each piece."""
    digest, at = hashlib.sha256(), 0
    while piece := os.pread(descriptor, PIECE, at):
        digest.update(piece)
        at += len(piece)
        tell(len(piece))
    return digest.hexdigest()


def _state(descriptor: int) -> tuple[int, ...]:
    """Changes when the file is written to."""
    found = os.fstat(descriptor)
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _close(descriptors: list[int]) -> None:
    while descriptors:
        os.close(descriptors.pop())
