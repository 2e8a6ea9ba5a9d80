"""Writing a dataset: parts first, each with its checksums, the manifest last (docs/format.md)."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin
import numpy as np
import xxhash

from native.files import sync, write_durably
from native.format import (
    COUNT_FIELDS,
    FORMAT_NAME,
    FORMAT_VERSION,
    MANIFEST,
    MAX_CHUNK_BYTES,
    MAX_CHUNK_ROWS,
    MAX_MANIFEST_BYTES,
    VOCABULARY,
    DatasetError,
    file_digest,
    group_name,
    json_digest,
    part_rows,
)
from native.hdf5 import read_hdf5_index
from native.index import write_index
from native.text import FIRST_WORD_ID, SPLITS

DEFAULT_CHUNK_ROWS = 2048
LZ4_PLANES = {"shuffle": True, **hdf5plugin.LZ4()}
"""h5py's options for tokens: most ids are small, so that their upper bytes compress well where they stand together"""
PART_BYTES = 256 << 20
"""decoded tokens per part file, about"""


class DatasetWriter:
    """Writes a dataset folder; the manifest comes last, so a folder without it is known to be unfinished.

    Args:
        folder: new or empty folder.
        bounds: padded length of each bucket, ascending, in tokens.
        rows: exact number of rows per split and bucket.
        vocabulary: words by falling frequency.
        chunk_rows: rows of a chunk.
        compress: byte shuffle and LZ4; False stores the rows as they are.

    Raises:
        DatasetError: the folder holds something, or the arguments do not fit each other.
    """

    def __init__(
        self,
        folder: Path,
        *,
        bounds: Sequence[int],
        rows: Mapping[str, Sequence[int]],
        vocabulary: Sequence[str],
        chunk_rows: int = DEFAULT_CHUNK_ROWS,
        compress: bool = True,
    ) -> None:
        self.folder = Path(folder)
        self.bounds = [int(bound) for bound in bounds]
        self.rows = {split: [int(count) for count in rows.get(split, [0] * len(bounds))] for split in SPLITS}
        self.vocabulary = list(vocabulary)
        self.chunk_rows = chunk_rows
        self.compress = compress
        if self.bounds != sorted(set(self.bounds)) or not self.bounds or not 0 < self.bounds[-1] < 10_000:
            raise DatasetError(f"bucket bounds {self.bounds} must ascend and lie in 1..9999")
        if not 1 <= chunk_rows <= MAX_CHUNK_ROWS:
            raise DatasetError(f"chunk_rows {chunk_rows} must lie in 1..{MAX_CHUNK_ROWS}")
        self.token_type = np.dtype("<u2" if len(self.vocabulary) + FIRST_WORD_ID <= 1 << 16 else "<u4")
        if chunk_rows * self.bounds[-1] * self.token_type.itemsize > MAX_CHUNK_BYTES:
            raise DatasetError(f"chunk_rows {chunk_rows}: a chunk would have more than {MAX_CHUNK_BYTES:,} bytes")
        if any(len(counts) != len(self.bounds) for counts in self.rows.values()):
            raise DatasetError(f"rows must give one number per bucket ({len(self.bounds)}) for each split")
        if self.folder.exists() and any(self.folder.iterdir()):
            raise DatasetError(f"{self.folder}: not empty; name a new folder, nothing is overwritten")
        self._parts: dict[str, list[_PartWriter]] = {}
        self._stars = {split: np.zeros(5, np.int64) for split in SPLITS}
        self.folder.mkdir(parents=True, exist_ok=True)

    def write(self, split: str, bucket: int, tokens: np.ndarray, lengths: np.ndarray, stars: np.ndarray) -> None:
        """Append rows to a bucket of a split, in their final order.

        Args:
            split: one of SPLITS.
            bucket: index into bounds.
            tokens: [n, bounds[bucket]], padded on the right with 0.
            lengths: [n], 1..bound.
            stars: [n], 1..5.

        Raises:
            DatasetError: values out of range, or more rows than announced.
        """
        tokens, lengths, stars = np.asarray(tokens), np.asarray(lengths), np.asarray(stars)
        if not len(tokens):
            return
        if tokens.shape != (len(lengths), self.bounds[bucket]) or len(stars) != len(lengths):
            raise DatasetError(
                f"tokens {tokens.shape}, lengths {lengths.shape} and stars {stars.shape} do not fit "
                f"bucket {self.bounds[bucket]}"
            )
        if tokens.min() < 0 or tokens.max() >= len(self.vocabulary) + FIRST_WORD_ID:
            raise DatasetError(f"token ids must lie in 0..{len(self.vocabulary) + FIRST_WORD_ID - 1}")
        if lengths.min() < 1 or lengths.max() > self.bounds[bucket] or stars.min() < 1 or stars.max() > 5:
            raise DatasetError(f"lengths must lie in 1..{self.bounds[bucket]} and stars in 1..5")
        self._stars[split] += np.bincount(stars, minlength=6)[1:6]
        done = 0
        for part in self._open_parts(split):
            done += part.take(bucket, tokens[done:], lengths[done:], stars[done:])
        if done != len(tokens):
            raise DatasetError(f"{split}: more rows for bucket {self.bounds[bucket]} than announced")

    def finish(
        self, *, text: Mapping[str, Any], counts: Mapping[str, int], extra: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """Complete all parts, write the vocabulary and, last, the manifest.

        Args:
            text: text settings, plain JSON values.
            counts: what happened to every input line (COUNT_FIELDS).
            extra: further top-level entries of the manifest, outside its digest.

        Returns:
            The manifest.

        Raises:
            DatasetError: fewer rows than announced, or counts that do not add up.
        """
        if set(counts) != set(COUNT_FIELDS) or counts["lines"] != sum(counts[field] for field in COUNT_FIELDS[1:]):
            raise DatasetError(f"counts {dict(counts)} must hold {COUNT_FIELDS}, with lines = the sum of the others")
        parts = [part.close() for split in SPLITS for part in self._open_parts(split)]
        words = "".join(f"{word}\n" for word in self.vocabulary).encode("utf-8")
        write_durably(self.folder / VOCABULARY, words)
        manifest: dict[str, Any] = {
            "format": FORMAT_NAME,
            "version": FORMAT_VERSION,
            "text": dict(text),
            "vocabulary": {"words": len(self.vocabulary), "digest": hashlib.sha256(words).hexdigest()},
            "bucket_bounds": self.bounds,
            "chunk_rows": self.chunk_rows,
            "token_type": self.token_type.name,
            "splits": {
                split: {
                    "rows": sum(self.rows[split]),
                    "bucket_rows": self.rows[split],
                    "stars": self._stars[split].tolist(),
                }
                for split in SPLITS
            },
            "parts": parts,
        }
        manifest["digest"] = json_digest(manifest)
        manifest |= {"counts": dict(counts), "storage": self._storage(), **(extra or {})}
        written = (json.dumps(manifest, indent=1, sort_keys=True) + "\n").encode()
        if len(written) > MAX_MANIFEST_BYTES:
            raise DatasetError(f"{MANIFEST} would have {len(written):,} bytes, more than {MAX_MANIFEST_BYTES:,}")
        write_durably(self.folder / MANIFEST, written)
        return manifest

    def _storage(self) -> dict[str, int]:
        """Bytes of all tokens: as stored, padded to their buckets' bounds, and padded to the longest bound."""
        per_bucket = np.array([self.rows[split] for split in SPLITS], np.int64).sum(axis=0)
        size = self.token_type.itemsize
        return {
            "stored_bytes": sum(part.stored_bytes for split in SPLITS for part in self._parts[split]),
            "bucket_bytes": int(per_bucket @ np.array(self.bounds)) * size,
            "longest_bytes": int(per_bucket.sum()) * self.bounds[-1] * size,
        }

    def abort(self) -> None:
        """Remove what was written."""
        for parts in self._parts.values():
            for part in parts:
                part.file.close()
        for name in SPLITS:
            shutil.rmtree(self.folder / name, ignore_errors=True)
        for name in (VOCABULARY, MANIFEST):
            (self.folder / name).unlink(missing_ok=True)

    def _open_parts(self, split: str) -> list[_PartWriter]:
        if split not in self._parts:
            total = sum(count * bound for count, bound in zip(self.rows[split], self.bounds, strict=True))
            parts = max(1, -(-total * self.token_type.itemsize // PART_BYTES))
            per_bucket = [part_rows(count, self.chunk_rows, parts) for count in self.rows[split]]
            (self.folder / split).mkdir(exist_ok=True)
            self._parts[split] = [
                _PartWriter(self, f"{split}/part-{number:05d}.h5", [counts[number] for counts in per_bucket])
                for number in range(parts)
            ]
        return self._parts[split]


class _PartWriter:
    """One part file: takes rows up to its announced number per bucket, then adds the checksums."""

    def __init__(self, writer: DatasetWriter, path: str, rows: list[int]) -> None:
        self.path, self.rows, self.bounds, self.chunk_rows = path, rows, writer.bounds, writer.chunk_rows
        self.whole_path = writer.folder / path
        self.file = h5py.File(self.whole_path, "w", libver=("v110", "v110"))
        self.written = [0] * len(rows)
        self.token_type = writer.token_type.name
        self.tokens_written = self.stored_bytes = 0
        for bound, count in zip(self.bounds, rows, strict=True):
            group = self.file.create_group(group_name(bound))
            # maxshape leaves room for a last chunk that is wider than the rows there are
            padded = -(-count // self.chunk_rows) * self.chunk_rows
            group.create_dataset(
                "tokens",
                (count, bound),
                writer.token_type,
                chunks=(self.chunk_rows, bound),
                maxshape=(max(padded, self.chunk_rows), bound),
                **(LZ4_PLANES if writer.compress else {}),
            )
            group.create_dataset("lengths", (count,), "<u2")
            group.create_dataset("stars", (count,), "|u1")
        # Rows wait here until a chunk is whole: a chunk is compressed once.
        self._waiting: list[list[tuple[np.ndarray, ...]]] = [[] for _ in rows]

    def take(self, bucket: int, tokens: np.ndarray, lengths: np.ndarray, stars: np.ndarray) -> int:
        """Append as many of the rows as this part still takes; returns how many."""
        held = sum(len(block[1]) for block in self._waiting[bucket])
        count = min(len(tokens), self.rows[bucket] - self.written[bucket] - held)
        if count:
            self._waiting[bucket].append((tokens[:count].copy(), lengths[:count].copy(), stars[:count].copy()))
            if held + count >= self.chunk_rows or self.written[bucket] + held + count == self.rows[bucket]:
                self._flush(bucket)
        return count

    def _flush(self, bucket: int) -> None:
        tokens, lengths, stars = (np.concatenate(column) for column in zip(*self._waiting[bucket], strict=True))
        start = self.written[bucket]
        whole = (
            len(tokens)
            if start + len(tokens) == self.rows[bucket]
            else len(tokens) // self.chunk_rows * self.chunk_rows
        )
        group = self.file[group_name(self.bounds[bucket])]
        for name, values in (("tokens", tokens), ("lengths", lengths), ("stars", stars)):
            group[name][start : start + whole] = values[:whole]
        self.written[bucket] += whole
        self.tokens_written += int(lengths[:whole].sum())
        self._waiting[bucket] = [(tokens[whole:], lengths[whole:], stars[whole:])] if whole < len(tokens) else []

    def close(self) -> dict[str, Any]:
        """Add checksums, write the index file, flush both to disk; returns the part's entry in the manifest."""
        if self.written != self.rows:
            raise DatasetError(f"{self.path}: {self.written} rows per bucket written, {self.rows} announced")
        for bound, count in zip(self.bounds, self.rows, strict=True):
            self._add_checksums(self.file[group_name(bound)], count)
        self.file.close()
        indexes = read_hdf5_index(self.whole_path, self.bounds, self.chunk_rows, self.token_type)
        self.stored_bytes = sum(int(index.sizes.sum()) for index in indexes)
        sync(self.whole_path)
        return {
            "path": self.path,
            "rows": sum(self.rows),
            "tokens": self.tokens_written,
            "digest": file_digest(self.whole_path),
            "index_digest": write_index(self.whole_path, indexes),
        }

    def _add_checksums(self, group: h5py.Group, rows: int) -> None:
        starts = range(0, rows, self.chunk_rows)
        stored = [xxhash.xxh3_64_intdigest(group["tokens"].id.read_direct_chunk((start, 0))[1]) for start in starts]
        lengths, stars = group["lengths"][:], group["stars"][:]
        sides = [
            xxhash.xxh3_64_intdigest(
                lengths[start : start + self.chunk_rows].tobytes() + stars[start : start + self.chunk_rows].tobytes()
            )
            for start in starts
        ]
        group.create_dataset("checksums", data=np.array(stored, "<u8"))
        group.create_dataset("row_checksums", data=np.array(sides, "<u8"))
