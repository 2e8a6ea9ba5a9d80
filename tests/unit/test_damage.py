"""Damaged datasets: a typed error with file and place, never a crash or a wrong batch, and libhdf5 never sees them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

import native
from native import DatasetError
from native.index import CHUNK_BYTES, index_path
from tests.synthetic import forget_indexes, seal, write_dataset

PART = "train/part-00000.h5"
INDEX = "train/part-00000.index"


@pytest.fixture
def no_libhdf5(monkeypatch) -> None:
    """Opening anything with libhdf5 fails the test."""

    def opened(*arguments: object, **_: object) -> None:
        pytest.fail(f"libhdf5 was asked to open {arguments}")

    monkeypatch.setattr("native.hdf5.h5py.File", opened)


def read_all(folder: Path) -> native.Batch:
    with native.open_dataset(folder) as data:
        return data.read(range(len(data)))


def change(path: Path, edit: Callable[[bytearray], object]) -> None:
    data = bytearray(path.read_bytes())
    edit(data)
    path.write_bytes(data)


def chunk_place(folder: Path, chunk: int) -> tuple[Path, int, int]:
    path = folder / PART
    with h5py.File(path) as file:
        info = file["0008"]["tokens"].id.get_chunk_info(chunk)
    return path, info.byte_offset, info.size


def test_a_sound_dataset_is_read_without_libhdf5(folder, no_libhdf5):
    batch = read_all(folder)
    assert batch.tokens.shape == (1133, 16)


def test_without_index_files_the_same_rows_are_read(folder):
    expected = read_all(folder)
    forget_indexes(folder)
    found = read_all(folder)
    for name in ("tokens", "lengths", "stars"):
        assert np.array_equal(getattr(found, name), getattr(expected, name))


def test_a_flipped_bit_is_found_with_file_dataset_and_chunk(folder):
    path, offset, size = chunk_place(folder, 3)

    def flip(data: bytearray) -> None:
        data[offset + size // 2] ^= 4

    change(path, flip)
    with native.open_dataset(folder) as opened:
        opened.read_bucket(0, np.arange(3 * 64))
        with pytest.raises(DatasetError, match=r"part-00000.h5: /0008/tokens, chunk 3: its stored bytes"):
            opened.read_bucket(0, np.arange(700))
        opened.read_bucket(0, np.arange(4 * 64, 700))  # the others still read
    forget_indexes(folder)
    with pytest.raises(DatasetError, match=r"part-00000\.h5: does not fit its digest"):
        native.open_dataset(folder)


def test_a_flipped_star_is_found(folder):
    with h5py.File(folder / PART, "a") as file:
        file["0008"]["stars"][70] ^= 1
    with native.open_dataset(folder) as opened, pytest.raises(DatasetError, match="chunk 1: its lengths and stars"):
        opened.read_bucket(0, np.arange(700))


@pytest.mark.parametrize("with_index", [True, False])
def test_a_truncated_part_never_crashes(folder, with_index, no_libhdf5):
    if not with_index:
        forget_indexes(folder)
    whole = (folder / PART).read_bytes()
    for size in range(0, len(whole), len(whole) // 60):
        (folder / PART).write_bytes(whole[:size])
        with pytest.raises(DatasetError, match=r"part-00000\.h5"):
            read_all(folder)


def test_any_damaged_byte_of_a_part_without_an_index_keeps_libhdf5_away(folder, no_libhdf5):
    forget_indexes(folder)
    whole = (folder / PART).read_bytes()
    for at in range(0, len(whole), 97):
        (folder / PART).write_bytes(whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :])
        with pytest.raises(DatasetError, match=r"part-00000\.h5: does not fit its digest in dataset\.json"):
            native.open_dataset(folder)


@pytest.mark.parametrize("at", [8, 15, 24, 32, 200, -1])
def test_a_damaged_index_is_refused(folder, at, no_libhdf5):
    def flip(data: bytearray) -> None:
        data[at] ^= 1

    change(folder / INDEX, flip)
    with pytest.raises(DatasetError, match=r"part-00000\.index: "):
        native.open_dataset(folder)


@pytest.mark.parametrize(
    "edit",
    [
        lambda data: data.clear(),
        lambda data: data.extend(bytes(CHUNK_BYTES)),
        lambda data: data.__delitem__(slice(-8, None)),
        lambda data: data.__delitem__(slice(0, 8)),
        lambda data: data.__setitem__(slice(8, 16), (2**63 - 1).to_bytes(8, "little")),
        lambda data: data.__setitem__(slice(8, 16), (-700).to_bytes(8, "little", signed=True)),
        lambda data: data.__setitem__(slice(8, 24), (433).to_bytes(8, "little") + (700).to_bytes(8, "little")),
        lambda data: data.__setitem__(slice(8, 16), (699).to_bytes(8, "little")),
    ],
)
def test_an_index_of_another_size_or_other_rows_is_refused(folder, edit):
    change(folder / INDEX, edit)
    with pytest.raises(DatasetError, match=r"part-00000\.index: "):
        native.open_dataset(folder)


def test_an_index_of_another_part_is_refused(folder, tmp_path):
    write_dataset(tmp_path / "other", seed=6)
    shutil.copy(tmp_path / "other" / INDEX, folder / INDEX)
    with pytest.raises(DatasetError, match=r"part-00000\.index: does not fit its digest"):
        native.open_dataset(folder)


def test_a_part_that_is_cut_while_it_is_open_is_told(folder):
    with native.open_dataset(folder, cache_bytes=1) as data:
        data.read_bucket(0, np.arange(10))
        os.truncate(folder / PART, 3000)
        with pytest.raises(DatasetError, match="ends before the chunk does"):
            data.read_bucket(1, np.arange(433))


def test_a_part_that_is_replaced_while_it_is_open_is_never_taken_for_the_one_that_was_verified(
    folder, tmp_path, monkeypatch
):
    expected = read_all(folder)
    write_dataset(tmp_path / "other", seed=6)
    with native.open_dataset(folder) as fast:
        monkeypatch.setattr("native.parts.load_codecs", lambda: None)
        with pytest.warns(RuntimeWarning, match="h5py"):
            slow = native.open_dataset(folder)
        (tmp_path / "other" / PART).replace(folder / PART)
        assert np.array_equal(fast.read(range(1133)).tokens, expected.tokens)
        with slow, pytest.raises(DatasetError, match="libhdf5 cannot read it"):
            slow.read(range(1133))


def test_a_part_that_is_written_to_is_not_given_to_libhdf5(folder, monkeypatch):
    monkeypatch.setattr("native.parts.load_codecs", lambda: None)
    with pytest.warns(RuntimeWarning):
        data = native.open_dataset(folder)
    with data:
        data.read_bucket(0, np.arange(64))
        with (folder / PART).open("r+b") as file:
            file.write(b"no HDF5")
        with pytest.raises(DatasetError, match=r"part-00000\.h5: does not fit its digest"):
            data.read_bucket(0, np.arange(64, 128))


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
@pytest.mark.parametrize("path", ["dataset.json", "vocabulary.txt", PART, INDEX])
def test_what_is_no_file_does_not_make_it_wait(folder, path, make, no_libhdf5):
    (folder / path).unlink()
    make(folder / path)
    with pytest.raises(DatasetError, match="not a regular file"), native.open_dataset(folder) as data:
        data.vocabulary()


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda folder: (folder / PART).unlink(), "missing, but named"),
        (lambda folder: (folder / PART).write_bytes(b"text"), "has 4 bytes, its index file says"),
        (lambda folder: (folder / PART).write_bytes(b""), "has 0 bytes, its index file says"),
    ],
)
def test_an_unusable_part_is_told_in_words(folder, break_it, message):
    break_it(folder)
    with pytest.raises(DatasetError, match=message):
        native.open_dataset(folder)


def test_the_index_and_the_part_of_a_wrong_writer_must_agree_where_libhdf5_reads(folder, monkeypatch):
    """An index file that names the places of another layout than the part's."""
    with h5py.File(folder / PART, "a") as file:
        file["0008"].move("tokens", "old")
        file["0008"].create_dataset("tokens", data=file["0008"]["old"][:], chunks=(64, 8), maxshape=(704, 8))
    seal(folder, indexes=False)
    monkeypatch.setattr("native.parts.load_codecs", lambda: None)
    assert index_path(folder / PART).exists()
    with pytest.warns(RuntimeWarning):
        data = native.open_dataset(folder)
    with data, pytest.raises(DatasetError, match="its chunk index does not fit"):
        data.read_bucket(0, np.arange(10))
