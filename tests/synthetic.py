"""A small dataset that a model can learn a little from, written by the real writer; for tests."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from native import DatasetWriter
from native.format import DIGEST_FIELDS, file_digest, json_digest
from native.hdf5 import read_hdf5_index
from native.index import index_digest, index_path, write_index

ROWS = {"train": (700, 433), "validation": (90, 61), "test": (50, 33)}


def make_rows(
    rng: np.random.Generator, count: int, bound: int, words: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens [count, bound] (padded with 0), lengths and stars that follow from the words."""
    lengths = rng.integers(max(1, bound // 2), bound + 1, count)
    tokens = rng.integers(2, words + 2, (count, bound))
    lean = (tokens < 2 + words // 4).sum(axis=1) - (tokens > words - words // 4).sum(axis=1)
    tokens[np.arange(bound) >= lengths[:, None]] = 0
    stars = np.clip(3 + lean, 1, 5)
    return tokens, lengths, stars


def write_dataset(
    folder: Path,
    *,
    bounds: Sequence[int] = (8, 16),
    rows: Mapping[str, Sequence[int]] = ROWS,
    words: int = 60,
    chunk_rows: int = 64,
    compress: bool = True,
    part_bytes: int | None = None,
    seed: int = 5,
) -> dict[str, Any]:
    """Write a dataset; returns, per split and bucket, the (tokens, lengths, stars) that went in."""
    rng = np.random.default_rng(seed)
    writer = DatasetWriter(
        folder,
        bounds=bounds,
        rows=rows,
        vocabulary=[f"word{i}" for i in range(words)],
        chunk_rows=chunk_rows,
        compress=compress,
        part_bytes=part_bytes,
    )
    content: dict[str, Any] = {}
    for split, counts in rows.items():
        content[split] = []
        for bucket, count in enumerate(counts):
            columns = make_rows(rng, count, bounds[bucket], words)
            for start in range(0, count, 50):  # pieces that do not fit the chunks
                writer.write(split, bucket, *(column[start : start + 50] for column in columns))
            content[split].append(columns)
    total = sum(sum(counts) for counts in rows.values())
    writer.finish(
        text={"max_length": bounds[-1], "stop_words": []},
        counts={"lines": total, "kept": total, "duplicates": 0, "empty": 0, "malformed": 0, "without_rating": 0},
    )
    return content


def seal(folder: Path, *, file_digests: bool = True, indexes: bool = True) -> None:
    """Make the digests in dataset.json fit the files again: what a wrong or hostile writer would do.

    Args:
        folder: the dataset's.
        file_digests: those of the parts too, which takes long for large ones.
        indexes: take the parts' indexes anew, and write them down where an index file is; else only the parts' sizes.
    """
    manifest = json.loads((folder / "dataset.json").read_text())
    for part in manifest["parts"]:
        path = folder / part["path"]
        if indexes:
            found = read_hdf5_index(path, manifest["bucket_bounds"], manifest["chunk_rows"], manifest["token_type"])
            part["index_digest"] = write_index(path, found) if index_path(path).exists() else index_digest(found)
        elif index_path(path).exists():
            head = path.stat().st_size.to_bytes(8, "little")
            index_path(path).write_bytes(head + index_path(path).read_bytes()[8:])
        if file_digests:
            part["digest"] = file_digest(path)
    manifest["digest"] = json_digest({field: manifest[field] for field in DIGEST_FIELDS})
    (folder / "dataset.json").write_text(json.dumps(manifest))


def forget_indexes(folder: Path) -> None:
    """Remove the index files: what datasets of earlier versions look like."""
    for path in folder.glob("*/*.index"):
        path.unlink()
