"""The cases: case `number` of a seed is a function of both, so that any one can be run again by itself.

Negative numbers are truncations, one for every length that is shorter than the file; the others are drawn.
"""

from __future__ import annotations

import hashlib
import json
import random
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from tests.fuzz.material import INDEX, MANIFEST, PART, VOCABULARY, Forgery, Material, checksum, put, sign_manifest
from tests.fuzz.mutations import CHANGES, EXTREMES, Change, change_json, dump_json

CHECKPOINT = "checkpoint"


@dataclass(frozen=True)
class Case:
    """What is put in place of valid files."""

    dataset: str
    """the dataset whose files they are; CHECKPOINT for none"""
    files: dict[str, bytes | None]
    """the files that differ; None: removed"""
    signed: bool = False
    """every digest was made to fit: the rows may differ, and the slow twin says which are right"""


Maker = Callable[[random.Random, str, Material], Case]


@dataclass(frozen=True)
class Kind:
    """A way to make cases."""

    name: str
    make: Maker
    weight: int = 1
    """how many of all cases"""
    datasets: tuple[str, ...] = ("lz4", "plain", "wide")


class Cases:
    """All cases of a seed.

    Args:
        material: what is mutated.
        seed: any number.
    """

    def __init__(self, material: Material, seed: int) -> None:
        self._material, self._seed = material, seed

    @cached_property
    def truncations(self) -> list[tuple[str, str, int]]:
        """(kind, file, size) of every truncation."""
        files = {**self._material.datasets["lz4"].files, CHECKPOINT: self._material.checkpoint}
        whole = [(name, path, len(files[path])) for name, path in TRUNCATED.items()]
        return [(name, path, size) for name, path, length in whole for size in range(length)]

    def numbers(self, count: int, every: int) -> list[int]:
        """The cases of a campaign: every so many of the truncations, and `count` others."""
        return [*range(-1, -1 - len(self.truncations), -every), *range(count)]

    def kind(self, number: int) -> str:
        """The name of a case's kind."""
        return self.truncations[-1 - number][0] if number < 0 else _TURNS[number % len(_TURNS)].name

    def case(self, number: int) -> Case:
        """The case of this number, from -len(truncations) on."""
        if number < 0:
            return self._truncation(*self.truncations[-1 - number])
        rng = random.Random(f"{self._seed}/{number}")
        kind = _TURNS[number % len(_TURNS)]
        return kind.make(rng, rng.choice(kind.datasets), self._material)

    def _truncation(self, name: str, path: str, size: int) -> Case:
        if path == CHECKPOINT:
            return Case(CHECKPOINT, {CHECKPOINT: self._material.checkpoint[:size]})
        files: dict[str, bytes | None] = {path: self._material.datasets["lz4"].files[path][:size]}
        return Case("lz4", files | ({INDEX: None} if name == PART_ALONE else {}))


def _any_change(rng: random.Random) -> Change:
    return rng.choice(list(CHANGES.values()))


def _changed(path: str) -> Maker:
    """Any bytes of a file."""

    def make(rng: random.Random, dataset: str, material: Material) -> Case:
        data = _any_change(rng)(rng, material.datasets[dataset].files[path], material.others[dataset][path])
        return Case(dataset, {path: data})

    return make


def _part_without_index(rng: random.Random, dataset: str, material: Material) -> Case:
    return Case(dataset, _changed(PART)(rng, dataset, material).files | {INDEX: None})


def _manifest_values(rng: random.Random, dataset: str, material: Material) -> Case:
    return Case(dataset, {MANIFEST: dump_json(rng, change_json(rng, material.datasets[dataset].manifest))})


def _manifest_signed(rng: random.Random, dataset: str, material: Material) -> Case:
    manifest = change_json(rng, material.datasets[dataset].manifest)
    sign_manifest(manifest)
    return Case(dataset, {MANIFEST: dump_json(rng, manifest)}, signed=True)


def _signed(dataset: str, forged: Forgery, *paths: str) -> Case:
    """These files of a forgery, and the manifest that vouches for them."""
    files = forged.sign()
    return Case(dataset, {path: files[path] for path in (*paths, MANIFEST)}, signed=True)


def _vocabulary_signed(rng: random.Random, dataset: str, material: Material) -> Case:
    forged = material.datasets[dataset].forgery()
    data = _any_change(rng)(rng, forged.files[VOCABULARY], material.others[dataset][VOCABULARY])
    forged.files[VOCABULARY] = data
    forged.manifest["vocabulary"]["digest"] = hashlib.sha256(data).hexdigest()
    return _signed(dataset, forged, VOCABULARY)


def _index_signed(rng: random.Random, dataset: str, material: Material) -> Case:
    """Any bytes of the index."""
    forged = material.datasets[dataset].forgery()
    forged.sign_index(_any_change(rng)(rng, forged.files[INDEX], material.others[dataset][INDEX]))
    return _signed(dataset, forged, INDEX)


def _index_numbers_signed(rng: random.Random, dataset: str, material: Material) -> Case:
    """Numbers of one chunk in the index, and of a whole bucket, made extreme."""
    pristine = material.datasets[dataset]
    forged, chunk = pristine.forgery(), rng.choice(pristine.chunks)
    data, whole = pristine.files[INDEX], len(pristine.files[PART])
    for at in rng.sample((chunk.offset_at, chunk.size_at), rng.choice((0, 1, 1, 2))):
        value = rng.choice((*EXTREMES, -1, -2, whole, whole - 1, whole - chunk.size, whole + 1))
        data = put(data, at, struct.pack("<Q", value % 2**64))
    if rng.random() < 0.3:
        data = put(data, chunk.filters_at, bytes([rng.choice((0, 1, 2, 3, 4, 7, 255))]))
    if rng.random() < 0.4:  # the last three numbers of the last bucket: places of lengths and stars, rows
        value = rng.choice((*EXTREMES, -1, -2, whole))
        data = put(data, len(data) - rng.choice((8, 16, 24)), struct.pack("<Q", value % 2**64))
    if rng.random() < 0.2:  # the part's size or rows of a bucket, at the beginning
        data = put(data, rng.choice((0, 8, 16)), struct.pack("<Q", rng.choice((*EXTREMES, -1)) % 2**64))
    forged.sign_index(data)
    return _signed(dataset, forged, INDEX)


def _stored(rng: random.Random, dataset: str, material: Material) -> Case:
    """Any stored bytes of a chunk."""
    pristine = material.datasets[dataset]
    number = rng.randrange(len(pristine.chunks))
    chunk = pristine.chunks[number]
    stored, other = (
        files[PART][chunk.offset : chunk.offset + chunk.size] for files in (pristine.files, material.others[dataset])
    )
    return _stored_signed(dataset, material, number, _any_change(rng)(rng, stored, other))


def _container(rng: random.Random, dataset: str, material: Material) -> Case:
    """The numbers of a chunk's LZ4 container: sizes of the whole, of a block, and as stored."""
    pristine = material.datasets[dataset]
    number = rng.randrange(len(pristine.chunks))
    chunk = pristine.chunks[number]
    stored = pristine.files[PART][chunk.offset : chunk.offset + chunk.size]
    at, size = rng.choice(((0, 8), (4, 4), (8, 4), (12, 4)))
    value = rng.choice((*EXTREMES, *range(chunk.size - 18, chunk.size + 1)))
    return _stored_signed(dataset, material, number, put(stored, at, (value % 256**size).to_bytes(size, "big")))


def _stored_signed(dataset: str, material: Material, number: int, stored: bytes) -> Case:
    """A chunk with other stored bytes, and checksums and digests that fit them."""
    pristine = material.datasets[dataset]
    forged, chunk = pristine.forgery(), pristine.chunks[number]
    part = forged.files[PART]
    # Where they do not fit in the old place there is room behind the end.
    offset = chunk.offset if len(stored) <= chunk.size else len(part)
    forged.sign_part(put(part, offset, stored))
    index = put(forged.files[INDEX], chunk.offset_at, struct.pack("<Q", offset))
    index = put(index, chunk.size_at, struct.pack("<Q", len(stored)))
    forged.sign_index(put(index, chunk.checksum_at, checksum(stored)))
    return _signed(dataset, forged, PART, INDEX)


def _sides_signed(rng: random.Random, dataset: str, material: Material) -> Case:
    """A length or a star, with checksums and digests that fit."""
    pristine = material.datasets[dataset]
    forged, chunk = pristine.forgery(), rng.choice(pristine.chunks)
    part, row = forged.files[PART], rng.randrange(chunk.rows)
    if rng.random() < 0.5:
        length = rng.choice((0, 1, chunk.bound, chunk.bound + 1, 255, 256, 32_768, 65_535))
        part = put(part, chunk.lengths + 2 * row, struct.pack("<H", length))
    else:
        part = put(part, chunk.stars + row, bytes([rng.choice((0, 1, 2, 3, 4, 5, 6, 128, 255))]))
    sides = part[chunk.lengths :][: 2 * chunk.rows] + part[chunk.stars :][: chunk.rows]
    forged.sign_part(part)
    forged.sign_index(put(forged.files[INDEX], chunk.row_checksum_at, checksum(sides)))
    return _signed(dataset, forged, PART, INDEX)


def _part_signed(rng: random.Random, dataset: str, material: Material) -> Case:
    """Any bytes of a part; what HDF5 says of it is not read where there is an index."""
    forged = material.datasets[dataset].forgery()
    forged.sign_part(_any_change(rng)(rng, forged.files[PART], material.others[dataset][PART]))
    return _signed(dataset, forged, PART, INDEX)


def _checkpoint(rng: random.Random, dataset: str, material: Material) -> Case:
    return Case(CHECKPOINT, {CHECKPOINT: _any_change(rng)(rng, material.checkpoint, material.other_checkpoint)})


def _checkpoint_header(rng: random.Random, dataset: str, material: Material) -> Case:
    """Values of the header: JSON that names types, shapes and places of the tensors, and holds the plain values."""
    data = material.checkpoint
    size = int.from_bytes(data[:8], "little")
    header, tensors = json.loads(data[8 : 8 + size]), data[8 + size :]
    metadata = header["__metadata__"]
    if rng.random() < 0.5:
        header = change_json(rng, header)
    else:
        metadata["engine"] = json.dumps(change_json(rng, json.loads(metadata["engine"])))
    text = dump_json(rng, header)
    claimed = rng.choice(EXTREMES) % 2**64 if rng.random() < 0.1 else len(text)
    return Case(CHECKPOINT, {CHECKPOINT: claimed.to_bytes(8, "little") + text + tensors})


PART_ALONE = "truncated part without index"
TRUNCATED = {
    "truncated part": PART,
    PART_ALONE: PART,
    "truncated index": INDEX,
    "truncated manifest": MANIFEST,
    "truncated vocabulary": VOCABULARY,
    "truncated checkpoint": CHECKPOINT,
}
SMALL = ("lz4", "plain")
"""without the one whose vocabulary is large"""
KINDS = (
    Kind("part", _changed(PART), 8),
    Kind("part without index", _part_without_index, 6),
    Kind("index", _changed(INDEX), 8),
    Kind("manifest", _changed(MANIFEST), 6),
    Kind("manifest's values", _manifest_values, 6),
    Kind("vocabulary", _changed(VOCABULARY), 3, SMALL),
    Kind("signed part", _part_signed, 4),
    Kind("signed chunk", _stored, 10),
    Kind("signed LZ4 sizes", _container, 5, ("lz4", "wide")),
    Kind("signed lengths and stars", _sides_signed, 3),
    Kind("signed index", _index_signed, 5),
    Kind("signed index's numbers", _index_numbers_signed, 6),
    Kind("signed manifest's values", _manifest_signed, 8),
    Kind("signed vocabulary", _vocabulary_signed, 2, SMALL),
    Kind("checkpoint", _checkpoint, 8),
    Kind("checkpoint's header", _checkpoint_header, 6),
)
_TURNS = [kind for kind in KINDS for _ in range(kind.weight)]
NAMES = [*TRUNCATED, *(kind.name for kind in KINDS)]
"""of all kinds"""
