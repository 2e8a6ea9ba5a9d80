"""Damaged and hostile datasets: a typed error with file and place, never a crash or a wrong batch."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
import xxhash

import native
from native import DatasetError
from tests.synthetic import seal, write_dataset


@pytest.fixture
def folder(tmp_path):
    write_dataset(tmp_path / "data")
    return tmp_path / "data"


def chunk_place(folder: Path, chunk: int) -> tuple[Path, int, int]:
    path = folder / "train/part-00000.h5"
    with h5py.File(path) as file:
        info = file["0008"]["tokens"].id.get_chunk_info(chunk)
    return path, info.byte_offset, info.size


def test_a_flipped_bit_is_found_with_file_dataset_and_chunk(folder):
    path, offset, size = chunk_place(folder, 3)
    data = bytearray(path.read_bytes())
    data[offset + size // 2] ^= 4
    path.write_bytes(data)
    with native.open_dataset(folder) as opened:
        opened.read_bucket(0, np.arange(3 * 64))
        with pytest.raises(DatasetError, match=r"part-00000.h5: /0008/tokens, chunk 3: its stored bytes"):
            opened.read_bucket(0, np.arange(700))
        opened.read_bucket(0, np.arange(4 * 64, 700))  # the others still read


def test_a_flipped_star_is_found(folder):
    path = folder / "train/part-00000.h5"
    with h5py.File(path, "a") as file:
        file["0008"]["stars"][70] ^= 1
    with native.open_dataset(folder) as opened, pytest.raises(DatasetError, match="chunk 1: its lengths and stars"):
        opened.read_bucket(0, np.arange(700))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda group: group["tokens"].__setitem__((5, 2), 62), "outside the vocabulary"),
        (lambda group: group["lengths"].__setitem__(5, 9), "outside 1..bound"),
        (lambda group: group["lengths"].__setitem__(5, 0), "outside 1..bound"),
        (lambda group: group["stars"].__setitem__(5, 6), "outside 1..5"),
    ],
)
def test_wrong_values_with_right_checksums_are_found(folder, change, message):
    with h5py.File(folder / "train/part-00000.h5", "a") as file:
        group = file["0008"]
        change(group)
        group["checksums"][0] = xxhash.xxh3_64_intdigest(group["tokens"].id.read_direct_chunk((0, 0))[1])
        group["row_checksums"][0] = xxhash.xxh3_64_intdigest(
            group["lengths"][:64].tobytes() + group["stars"][:64].tobytes()
        )
    seal(folder)
    with native.open_dataset(folder) as opened, pytest.raises(DatasetError, match=message):
        opened.read_bucket(0, np.arange(700))


@pytest.mark.parametrize(
    "stored",
    [
        b"\0" * 11,
        b"\0" * 12,
        b"\0\0\0\0\0\0\4\0" + b"\0\0\4\0" + b"\0\0\xff\xff" + b"x" * 9,
        b"\0\0\0\0\0\0\4\0" + b"\xff\xff\xff\xff" + b"\0\0\0\1a",
        b"\0\0\0\0\0\0\4\0" + b"\0\0\2\0" + b"\0\0\0\5\x40rows",
        b"\xff" * 40,
    ],
)
def test_hostile_lz4_blocks_with_right_checksums_are_refused(folder, stored):
    with h5py.File(folder / "train/part-00000.h5", "a") as file:
        file["0008"]["tokens"].id.write_direct_chunk((0, 0), stored)
        file["0008"]["checksums"][0] = xxhash.xxh3_64_intdigest(stored)
    seal(folder)
    with native.open_dataset(folder) as opened, pytest.raises(DatasetError, match="chunk 0: its LZ4 blocks"):
        opened.read_bucket(0, np.arange(10))


def test_a_truncated_part_never_crashes(folder):
    path = folder / "train/part-00000.h5"
    whole = path.read_bytes()
    for size in range(0, len(whole), len(whole) // 60):
        path.write_bytes(whole[:size])
        with pytest.raises(DatasetError, match=r"part-00000\.h5"):
            native.open_dataset(folder).read_bucket(0, np.arange(700))


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda folder: (folder / "dataset.json").unlink(), "not a finished dataset"),
        (lambda folder: (folder / "dataset.json").write_text("{"), "not readable as JSON"),
        (lambda folder: (folder / "dataset.json").write_text("[]"), "not a reviews-hdf5 manifest"),
        (lambda folder: (folder / "train/part-00000.h5").unlink(), "missing, but named"),
        (lambda folder: (folder / "train/part-00000.h5").write_bytes(b"text"), "not readable as HDF5"),
    ],
)
def test_an_unusable_dataset_is_told_in_words(folder, break_it, message):
    break_it(folder)
    with pytest.raises(DatasetError, match=message):
        native.open_dataset(folder)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("version", 2, "format version 2"),
        ("chunk_rows", 32, "digest"),
        ("parts", [], "train has no part"),
        ("parts", "text", "parts must each have"),
        ("parts", [{"path": "../../etc/part", "digest": "", "index_digest": ""}], "does not lie in a split's folder"),
        ("chunk_rows", 4854406335186724113, "chunk_rows"),  # times the row size it would overflow to a small number
        ("chunk_rows", 0, "chunk_rows"),
        ("chunk_rows", "64", "chunk_rows"),
        ("bucket_bounds", [16, 8], "do not ascend"),
        ("bucket_bounds", [8, 1 << 40], "bucket_bounds"),
        ("bucket_bounds", [], "bucket_bounds"),
        ("token_type", "float64", "token_type"),
        ("vocabulary", {"words": -1}, "number of words"),
        ("splits", {"train": {}}, "splits must give"),
    ],
)
def test_a_changed_manifest_is_found(folder, field, value, message):
    manifest = json.loads((folder / "dataset.json").read_text())
    manifest[field] = value
    (folder / "dataset.json").write_text(json.dumps(manifest))
    with pytest.raises(DatasetError, match=message):
        native.open_dataset(folder)


def test_a_changed_vocabulary_is_found(folder):
    (folder / "vocabulary.txt").write_text("other\n")
    with native.open_dataset(folder) as data, pytest.raises(DatasetError, match=r"vocabulary.txt.*digest"):
        data.vocabulary()
