"""Writing a dataset: parts first, each with its checksums, the manifest last (docs/format.md)."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from native.files import write_durably
from native.format import (
    COUNT_FIELDS,
    FORMAT_NAME,
    FORMAT_VERSION,
    MANIFEST,
    MAX_MANIFEST_BYTES,
    VOCABULARY,
    DatasetError,
    json_digest,
)
from native.part_writer import DEFAULT_CHUNK_ROWS, Layout, Part, PartWriter, stars_of
from native.text import SPLITS


class DatasetWriter:
    """Writes a dataset folder; the manifest comes last, so a folder without it is known to be unfinished.

    Parts that are not full yet are held in memory, compressed: several buckets side by side make that a whole split.

    Args:
        folder: new or empty folder.
        bounds: padded length of each bucket, ascending, in tokens.
        rows: exact number of rows per split and bucket.
        vocabulary: words by falling frequency.
        chunk_rows: rows of a chunk.
        compress: byte shuffle and LZ4; False stores the rows as they are.
        part_bytes: decoded tokens of a part, about; None: PART_BYTES.

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
        part_bytes: int | None = None,
    ) -> None:
        self.folder = Path(folder)
        self.vocabulary = list(vocabulary)
        counts = {split: tuple(int(count) for count in rows.get(split, [0] * len(bounds))) for split in SPLITS}
        self.layout = Layout(
            tuple(int(bound) for bound in bounds),
            counts,
            len(self.vocabulary),
            chunk_rows,
            compress,
            **({} if part_bytes is None else {"part_bytes": part_bytes}),
        )
        if self.folder.exists() and any(self.folder.iterdir()):
            raise DatasetError(f"{self.folder}: not empty; name a new folder, nothing is overwritten")
        self._parts = {split: self.layout.parts(split) for split in SPLITS}
        self._open: dict[Part, PartWriter] = {}
        self._closed: dict[Part, dict[str, Any]] = {}
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
        self.layout.check_rows(bucket, tokens, lengths, stars)
        done = 0
        for part in self._parts[split]:
            if done == len(tokens) or part in self._closed:
                continue
            writer = self._writer(part)
            done += writer.take(bucket, tokens[done:], lengths[done:], stars[done:])
            if writer.full:
                self._close(part)
        if done != len(tokens):
            raise DatasetError(f"{split}: more rows for bucket {self.layout.bounds[bucket]} than announced")

    def finish(
        self, *, text: Mapping[str, Any], counts: Mapping[str, int], extra: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """Complete all parts, write the vocabulary and, last, the manifest; see finish_dataset.

        Raises:
            DatasetError: fewer rows than announced, or counts that do not add up.
        """
        check_counts(counts)
        parts = {split: [self._close(part) for part in self._parts[split]] for split in SPLITS}
        return finish_dataset(self.folder, self.layout, parts, self.vocabulary, text=text, counts=counts, extra=extra)

    def abort(self) -> None:
        """Remove what was written."""
        self._open.clear()
        remove_dataset(self.folder)

    def _writer(self, part: Part) -> PartWriter:
        if part not in self._open:
            self._open[part] = PartWriter(self.folder, self.layout, part)
        return self._open[part]

    def _close(self, part: Part) -> dict[str, Any]:
        if part not in self._closed:
            self._closed[part] = self._writer(part).close()
            del self._open[part]
        return self._closed[part]


def finish_dataset(
    folder: Path,
    layout: Layout,
    parts: Mapping[str, Sequence[dict[str, Any]]],
    vocabulary: Sequence[str],
    *,
    text: Mapping[str, Any],
    counts: Mapping[str, int],
    extra: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write the vocabulary and, last, the manifest of a dataset whose parts are written.

    Args:
        folder: of the dataset.
        layout: of the dataset.
        parts: per split, what PartWriter.close returned for each part, in their order.
        vocabulary: words by falling frequency.
        text: text settings, plain JSON values.
        counts: what happened to every input line (COUNT_FIELDS).
        extra: further top-level entries of the manifest, outside its digest.

    Returns:
        The manifest.

    Raises:
        DatasetError: counts that do not add up, or a manifest beyond its limit.
    """
    check_counts(counts)
    words = "".join(f"{word}\n" for word in vocabulary).encode("utf-8")
    write_durably(folder / VOCABULARY, words)
    manifest: dict[str, Any] = {
        "format": FORMAT_NAME,
        "version": FORMAT_VERSION,
        "text": dict(text),
        "vocabulary": {"words": len(vocabulary), "digest": hashlib.sha256(words).hexdigest()},
        "bucket_bounds": list(layout.bounds),
        "chunk_rows": layout.chunk_rows,
        "token_type": layout.token_type.name,
        "splits": {
            split: {
                "rows": sum(layout.rows[split]),
                "bucket_rows": list(layout.rows[split]),
                "stars": stars_of(parts[split]),
            }
            for split in SPLITS
        },
        "parts": [part["entry"] for split in SPLITS for part in parts[split]],
    }
    manifest["digest"] = json_digest(manifest)
    stored = sum(part["stored_bytes"] for split in SPLITS for part in parts[split])
    manifest |= {"counts": dict(counts), "storage": _storage(layout, stored), **(extra or {})}
    written = (json.dumps(manifest, indent=1, sort_keys=True) + "\n").encode()
    if len(written) > MAX_MANIFEST_BYTES:
        raise DatasetError(f"{MANIFEST} would have {len(written):,} bytes, more than {MAX_MANIFEST_BYTES:,}")
    write_durably(folder / MANIFEST, written)
    return manifest


def check_counts(counts: Mapping[str, int]) -> None:
    """Raise DatasetError unless every line is accounted for."""
    if set(counts) != set(COUNT_FIELDS) or counts["lines"] != sum(counts[field] for field in COUNT_FIELDS[1:]):
        raise DatasetError(f"counts {dict(counts)} must hold {COUNT_FIELDS}, with lines = the sum of the others")


def remove_dataset(folder: Path) -> None:
    """Remove the files of a dataset, whole or not; the folder stays. The manifest goes first."""
    for name in (MANIFEST, VOCABULARY):
        (folder / name).unlink(missing_ok=True)
    for name in SPLITS:
        shutil.rmtree(folder / name, ignore_errors=True)


def _storage(layout: Layout, stored: int) -> dict[str, int]:
    """Bytes of all tokens: as stored, padded to their buckets' bounds, and padded to the longest bound."""
    per_bucket = np.array([layout.rows[split] for split in SPLITS], np.int64).sum(axis=0)
    size = layout.token_type.itemsize
    return {
        "stored_bytes": stored,
        "bucket_bytes": int(per_bucket @ np.array(layout.bounds)) * size,
        "longest_bytes": int(per_bucket.sum()) * layout.bounds[-1] * size,
    }
