"""What is mutated: small valid datasets and checkpoints, as bytes."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash

from engine.checkpoint import Checkpoint, save_checkpoint
from native.format import DIGEST_FIELDS, json_digest
from tests.fuzz.oracle import Rows, slow_read
from tests.synthetic import write_dataset

BOUNDS = (4, 12)
ROWS = {"train": (19, 10), "validation": (2, 1), "test": (0, 1)}
CHUNK_ROWS = 8
HEAD = 8 + 8 * len(BOUNDS)
"""bytes of an index file before what its digest is of"""
PART, INDEX, MANIFEST, VOCABULARY = "train/part-00000.h5", "train/part-00000.index", "dataset.json", "vocabulary.txt"
RECIPES = {
    "lz4": {"words": 30},
    "plain": {"words": 30, "compress": False},
    "wide": {"words": 65_535},
}
"""datasets: as python -m mr writes them, not compressed, with ids of 32 bits"""


@dataclass(frozen=True)
class ChunkPlace:
    """A chunk in the part and in the index; `*_at` are places of its fields in the index."""

    offset: int
    size: int
    filters: int
    offset_at: int
    size_at: int
    filters_at: int
    checksum_at: int
    row_checksum_at: int
    rows: int
    bound: int
    lengths: int
    """place of its rows' lengths in the part"""
    stars: int


@dataclass
class Forgery:
    """A dataset's files in the hands of somebody who can make every digest fit."""

    files: dict[str, bytes]
    manifest: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        self.files = dict(self.files)
        self.manifest = json.loads(self.files[MANIFEST])

    @property
    def entry(self) -> dict[str, Any]:
        """The part's in the manifest."""
        return next(entry for entry in self.manifest["parts"] if entry["path"] == PART)

    def sign_index(self, index: bytes) -> None:
        """Put an index in place, with its digest."""
        self.files[INDEX] = index
        self.entry["index_digest"] = hashlib.sha256(index[HEAD:]).hexdigest()

    def sign_part(self, part: bytes) -> None:
        """Put a part in place, with its digest and its size."""
        self.files[PART] = part
        self.files[INDEX] = put(self.files[INDEX], 0, len(part).to_bytes(8, "little"))
        self.entry["digest"] = hashlib.sha256(part).hexdigest()

    def sign(self) -> dict[str, bytes]:
        """Put the manifest in place, with its digest; returns the files."""
        sign_manifest(self.manifest)
        self.files[MANIFEST] = json.dumps(self.manifest).encode()
        return self.files


def sign_manifest(manifest: Any) -> None:
    """Make the digest fit, where the fields are there."""
    if isinstance(manifest, dict):
        manifest["digest"] = json_digest({name: manifest.get(name) for name in DIGEST_FIELDS})


@dataclass
class Pristine:
    """A valid dataset."""

    files: dict[str, bytes]
    rows: list[Rows]
    """those of the training split, as the slow twin reads them"""
    words: list[str]
    chunks: list[ChunkPlace] = field(init=False)

    def __post_init__(self) -> None:
        self.chunks = list(_chunks(self.files[INDEX]))

    def forgery(self) -> Forgery:
        """A copy to change."""
        return Forgery(self.files)

    @property
    def manifest(self) -> dict[str, Any]:
        """A copy of the manifest."""
        found: dict[str, Any] = json.loads(self.files[MANIFEST])
        return found


def _chunks(index: bytes) -> Iterator[ChunkPlace]:
    numbers = np.frombuffer(index[8:HEAD], "<i8").tolist()
    at = HEAD
    for bound, rows in zip(BOUNDS, numbers, strict=True):
        chunks = -(-rows // CHUNK_ROWS)
        offsets, sizes = np.frombuffer(index, "<i8", 2 * chunks, at).reshape(2, chunks).tolist()
        filters_at = at + 16 * chunks
        end = at + 33 * chunks
        lengths, stars, _ = np.frombuffer(index[end : end + 24], "<i8").tolist()
        for chunk in range(chunks):
            yield ChunkPlace(
                offset=offsets[chunk],
                size=sizes[chunk],
                filters=index[filters_at + chunk],
                offset_at=at + 8 * chunk,
                size_at=at + 8 * (chunks + chunk),
                filters_at=filters_at + chunk,
                checksum_at=filters_at + chunks + 8 * chunk,
                row_checksum_at=filters_at + 9 * chunks + 8 * chunk,
                rows=min(CHUNK_ROWS, rows - chunk * CHUNK_ROWS),
                bound=bound,
                lengths=lengths + 2 * CHUNK_ROWS * chunk,
                stars=stars + CHUNK_ROWS * chunk,
            )
        at = end + 24


@dataclass
class Material:
    """All that is mutated, and a second one of each to splice with."""

    datasets: dict[str, Pristine]
    others: dict[str, dict[str, bytes]]
    checkpoint: bytes
    other_checkpoint: bytes


def make_material(work: Path) -> Material:
    """Write, read back and remove everything; the same bytes every time.

    Args:
        work: a folder for what is written meanwhile.
    """
    datasets, others = {}, {}
    for name, recipe in RECIPES.items():
        datasets[name] = _pristine(work / name, recipe | {"seed": 5})
        others[name] = _files(work / f"{name}-other", recipe | {"seed": 6})
    return Material(datasets, others, _checkpoint(work, 1), _checkpoint(work, 2))


def _files(folder: Path, recipe: dict[str, Any]) -> dict[str, bytes]:
    write_dataset(folder, bounds=BOUNDS, rows=ROWS, chunk_rows=CHUNK_ROWS, **recipe)
    files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    shutil.rmtree(folder)
    return files


def _pristine(folder: Path, recipe: dict[str, Any]) -> Pristine:
    files = _files(folder, recipe)
    words = files[VOCABULARY].decode().split("\n")[:-1]
    return Pristine(files, slow_read(files, "train"), words)


def _checkpoint(work: Path, seed: int) -> bytes:
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        "model/weight": torch.randn(3, 5, generator=generator),
        "model/half": torch.randn(4, generator=generator).bfloat16(),
        "optimizer/0/step": torch.tensor(float(seed)),
        "random/state": torch.randint(0, 255, (40,), generator=generator, dtype=torch.uint8),
        "vocabulary": torch.frombuffer(bytearray(b"good\nbad\n"), dtype=torch.uint8),
    }
    values = {
        "config": {"batch_size": 384, "seed": seed, "model": {"classes": 2}},
        "progress": {"epoch": 1, "step": 10 * seed, "total_steps": 110, "loss": 0.25},
        "shares": [192, 192],
        "text": {"max_length": 12, "stop_words": []},
    }
    path = work / "checkpoint"
    save_checkpoint(path, Checkpoint(tensors, values))
    data = path.read_bytes()
    path.unlink()
    return data


def checksum(data: bytes) -> bytes:
    """XXH3 as the index holds it."""
    return xxhash.xxh3_64_intdigest(data).to_bytes(8, "little")


def put(data: bytes, at: int, piece: bytes) -> bytes:
    """The bytes with a piece of them replaced."""
    return data[:at] + piece + data[at + len(piece) :]
