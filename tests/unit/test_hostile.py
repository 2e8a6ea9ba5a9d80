"""Datasets by somebody who means harm and has made every digest and checksum fit: refused with file and place."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import h5py
import hdf5plugin
import numpy as np
import pytest
import xxhash

import native
from native import DatasetError
from native.format import DIGEST_FIELDS, json_digest
from native.index import read_index, write_index
from tests.synthetic import forget_indexes, seal, write_dataset

PART = "train/part-00000.h5"


def sign_checksums(group: h5py.Group) -> None:
    """Make the first chunk's checksums fit."""
    group["checksums"][0] = xxhash.xxh3_64_intdigest(group["tokens"].id.read_direct_chunk((0, 0))[1])
    sides = group["lengths"][:64].tobytes() + group["stars"][:64].tobytes()
    group["row_checksums"][0] = xxhash.xxh3_64_intdigest(sides)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda group: group["tokens"].__setitem__((5, 2), 62), "outside the vocabulary"),
        (lambda group: group["lengths"].__setitem__(5, 9), "outside 1..bound"),
        (lambda group: group["lengths"].__setitem__(5, 0), "outside 1..bound"),
        (lambda group: group["stars"].__setitem__(5, 6), "outside 1..5"),
        (lambda group: group["stars"].__setitem__(5, 0), "outside 1..5"),
    ],
)
@pytest.mark.parametrize("native_codecs", [True, False])
def test_wrong_values_are_found(folder, change, message, native_codecs, monkeypatch):
    with h5py.File(folder / PART, "a") as file:
        change(file["0008"])
        sign_checksums(file["0008"])
    seal(folder)
    if not native_codecs:
        monkeypatch.setattr("native.parts.load_codecs", lambda: None)
        with pytest.warns(RuntimeWarning):
            data = native.open_dataset(folder)
    else:
        data = native.open_dataset(folder)
    with data, pytest.raises(DatasetError, match=rf"part-00000\.h5: /0008/tokens, chunk 0: .*{message}"):
        data.read_bucket(0, np.arange(700))


@pytest.mark.parametrize(
    "stored",
    [
        b"\0" * 11,
        b"\0" * 12,
        b"\0\0\0\0\0\0\4\0" + b"\0\0\4\0" + b"\0\0\xff\xff" + b"x" * 9,
        b"\0\0\0\0\0\0\4\0" + b"\xff\xff\xff\xff" + b"\0\0\0\1a",
        b"\0\0\0\0\0\0\4\0" + b"\0\0\2\0" + b"\0\0\0\5\x40rows",
        b"\0\0\0\1\0\0\4\0" + b"\0\0\4\0" + b"\0\0\0\5\x40rows",
        b"\0\0\0\0\xff\xff\xff\xff" + b"\0\0\4\0" + b"\0\0\0\5\x40rows",
        b"\0\0\0\0\0\0\4\0" + b"\0\0\0\0" + b"\0\0\0\5\x40rows",
        b"\0\0\0\0\0\0\4\0" + b"\0\0\4\0" + b"\0\0\0\x07\x1fa\1\0\xff\xff\xff",
        b"\xff" * 40,
    ],
)
def test_hostile_lz4_blocks_are_refused(folder, stored):
    with h5py.File(folder / PART, "a") as file:
        file["0008"]["tokens"].id.write_direct_chunk((0, 0), stored)
        file["0008"]["checksums"][0] = xxhash.xxh3_64_intdigest(stored)
    seal(folder)
    with native.open_dataset(folder) as opened, pytest.raises(DatasetError, match="chunk 0: its LZ4 blocks"):
        opened.read_bucket(0, np.arange(10))


def forge_index(folder: Path, **fields: object) -> None:
    """Change an index, third chunk of the first bucket where there is one number a chunk, and make all digests fit."""
    manifest = json.loads((folder / "dataset.json").read_text())
    entry = next(part for part in manifest["parts"] if part["path"] == PART)
    found = read_index(folder / PART, 2, 64, entry["index_digest"])
    assert found is not None
    first, second = found.buckets
    for name, value in fields.items():
        old = getattr(first, name)
        if isinstance(old, np.ndarray):
            changed = old.copy()
            changed[2] = value
            value = changed
        first = dataclasses.replace(first, **{name: value})
    entry["index_digest"] = write_index(folder / PART, [first, second])
    manifest["digest"] = json_digest({field: manifest[field] for field in DIGEST_FIELDS})
    (folder / "dataset.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"offsets": 2**63 - 1}, "chunk 2 lies outside the file's"),
        ({"offsets": 2**63 - 1, "sizes": 2**63 - 1}, "chunk 2 lies outside the file's"),
        ({"offsets": -2}, "chunk 2 lies outside the file's"),
        ({"sizes": 2**63 - 1}, "chunk 2 lies outside the file's"),
        ({"sizes": 0}, "chunk 2 lies outside the file's"),
        ({"sizes": -1}, "chunk 2 lies outside the file's"),
        ({"filters": 4}, "chunk 2 has filters that there are not"),
        ({"lengths_offset": 2**63 - 1}, "lengths lie outside"),
        ({"stars_offset": -7}, "stars lie outside"),
        ({"rows": 2**63 - 1}, "its size does not fit the rows"),
        ({"rows": 690}, "holds 1123 rows, dataset.json says 1133"),
    ],
)
def test_an_index_that_points_outside_the_file_is_refused(folder, fields, message):
    forge_index(folder, **fields)
    with pytest.raises(DatasetError, match=rf"part-00000\.(h5|index): .*{message}"):
        native.open_dataset(folder)


@pytest.mark.parametrize(
    ("compress", "fields", "message"),
    [
        (True, {"sizes": 7000}, "stored size cannot be that of its rows"),
        (True, {"sizes": 1}, "do not fit their checksum"),
        (True, {"filters": 2}, "stored size cannot be that of its rows"),
        (True, {"filters": 1}, "outside the vocabulary"),
        (False, {"sizes": 1008}, "stored size cannot be that of its rows"),
        (False, {"offsets": 3000}, "do not fit their checksum"),
        (False, {"filters": 1}, "its LZ4 blocks do not decode"),
        (False, {"lengths_offset": 1000}, "lengths and stars do not fit"),
    ],
)
def test_an_index_that_points_at_other_bytes_gives_no_rows(tmp_path, compress, fields, message):
    write_dataset(tmp_path / "data", compress=compress)
    forge_index(tmp_path / "data", **fields)
    with native.open_dataset(tmp_path / "data") as data, pytest.raises(DatasetError, match=message):
        data.read_bucket(0, np.arange(128, 192))


def replace(file: h5py.File, name: str, **options: object) -> None:
    """Make a dataset anew with other options."""
    data = file[f"0008/{name}"][:]
    del file[f"0008/{name}"]
    file["0008"].create_dataset(name, **({"data": data} | options))


def external_link(file: h5py.File, name: str) -> None:
    del file[f"0008/{name}"]
    file[f"0008/{name}"] = h5py.ExternalLink("/etc/passwd", "/data")


def soft_link(file: h5py.File, name: str) -> None:
    file.move(f"0008/{name}", "hidden")
    file[f"0008/{name}"] = h5py.SoftLink("/hidden")


def linked_group(file: h5py.File, name: str) -> None:
    file.move("0008", "hidden")
    file["0008"] = h5py.SoftLink("/hidden")


def external_storage(file: h5py.File, name: str) -> None:
    old = file[f"0008/{name}"]
    shape, dtype = old.shape, old.dtype
    del file[f"0008/{name}"]
    size = int(np.prod(shape)) * dtype.itemsize
    file["0008"].create_dataset(name, shape, dtype, external=[("/etc/passwd", 0, size)])


def virtual(file: h5py.File, name: str) -> None:
    old = file[f"0008/{name}"]
    layout = h5py.VirtualLayout(old.shape, old.dtype)
    layout[:] = h5py.VirtualSource("/etc/passwd", "data", old.shape, old.dtype)
    del file[f"0008/{name}"]
    file["0008"].create_virtual_dataset(name, layout)


@pytest.mark.parametrize("name", ["tokens", "lengths", "stars", "checksums", "row_checksums"])
@pytest.mark.parametrize(
    ("hide", "message"),
    [
        (external_link, "is a link to another place"),
        (soft_link, "is a link to another place"),
        (linked_group, "/0008 is a link to another place"),
        (external_storage, "keeps its values in other files"),
        (virtual, "keeps its values in other files"),
    ],
)
def test_bytes_that_lie_elsewhere_are_not_read(folder, hide, message, name, monkeypatch):
    with h5py.File(folder / PART, "a") as file:
        hide(file, name)
    seal(folder, indexes=False)
    # Where libhdf5 is needed for a chunk although there is an index file, and where there is none.
    monkeypatch.setattr("native.parts.load_codecs", lambda: None)
    with pytest.warns(RuntimeWarning):
        data = native.open_dataset(folder)
    with data, pytest.raises(DatasetError, match=rf"part-00000\.h5: .*{message}"):
        data.read_bucket(0, np.arange(10))
    forget_indexes(folder)
    with pytest.raises(DatasetError, match=rf"part-00000\.h5: .*{message}"):
        native.open_dataset(folder)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda file: replace(file, "tokens", dtype=">u2", chunks=(64, 8)), "is >u2"),
        (lambda file: replace(file, "tokens", dtype="<u4", chunks=(64, 8)), "is <u4"),
        (lambda file: replace(file, "tokens", dtype="<f4", chunks=(64, 8)), "is <f4"),
        (lambda file: replace(file, "tokens", data=np.zeros((700, 8, 1), "<u2")), r"\[700, 8, 1\]"),
        (lambda file: replace(file, "tokens", data=np.zeros((700, 9), "<u2")), r"\[700, 9\]"),
        (lambda file: replace(file, "tokens", data=np.zeros((699, 8), "<u2")), r"\[699, 8\]"),
        (lambda file: replace(file, "tokens", chunks=(32, 8)), r"chunks \(32, 8\)"),
        (lambda file: replace(file, "tokens", chunks=(64, 4)), r"chunks \(64, 4\)"),
        (lambda file: replace(file, "lengths", dtype=">u2"), "is >u2"),
        (lambda file: replace(file, "lengths", data=np.zeros((700, 1), "<u2")), "lengths|tokens"),
        (lambda file: replace(file, "lengths", data=h5py.Empty("<u2")), "lengths|tokens|cannot read"),
        (lambda file: replace(file, "stars", dtype="<i8"), "is <i8"),
        (lambda file: replace(file, "stars", data=np.zeros((), "u1")), "stars"),
        (lambda file: replace(file, "checksums", data=np.zeros(12, "<u8")), r"checksums is <u8 \[12\]"),
        (lambda file: file.move("0008/tokens", "0008/other"), "tokens is missing"),
        (lambda file: file.move("0008", "0009"), "/0008 is missing"),
        (lambda file: (file.move("0008", "x"), file.create_dataset("0008", data=1)), "/0008 is not a group"),
        (
            lambda file: (file.move("0008/tokens", "x"), file.create_group("0008/tokens")),
            "/0008/tokens is not a dataset",
        ),
    ],
)
def test_another_type_rank_byte_order_or_layout_is_refused(folder, edit, message):
    forget_indexes(folder)
    with h5py.File(folder / PART, "a") as file:
        edit(file)
    seal(folder, indexes=False)
    with pytest.raises(DatasetError, match=rf"part-00000\.h5: .*({message})"):
        native.open_dataset(folder)


@pytest.mark.parametrize("options", [{"compression": "gzip"}, hdf5plugin.Zstd(), {"fletcher32": True}])
def test_filters_that_fail_to_decode_are_told(folder, options):
    forget_indexes(folder)
    with h5py.File(folder / PART, "a") as file:
        replace(file, "tokens", chunks=(64, 8), maxshape=(704, 8), **options)
        stored = b"no such compression"
        file["0008/tokens"].id.write_direct_chunk((64, 0), stored)
        chunks = [file["0008/tokens"].id.read_direct_chunk((start, 0))[1] for start in range(0, 700, 64)]
        file["0008/checksums"][:] = [xxhash.xxh3_64_intdigest(chunk) for chunk in chunks]
    seal(folder)
    with pytest.warns(RuntimeWarning, match="h5py"):
        data = native.open_dataset(folder)
    with data:
        data.read_bucket(0, np.arange(64))
        with pytest.raises(DatasetError, match="chunk 1: libhdf5 cannot read it"):
            data.read_bucket(0, np.arange(64, 128))


def test_no_memory_is_taken_for_sizes_that_are_only_claimed(folder):
    manifest = json.loads((folder / "dataset.json").read_text())
    forget_indexes(folder)
    rows = 1 << 40
    with h5py.File(folder / PART, "a") as file:
        for name, dtype in (("lengths", "<u2"), ("stars", "u1")):
            del file[f"0008/{name}"]
            file["0008"].create_dataset(name, (rows,), dtype, chunks=(1 << 20,))
        del file["0008/tokens"]
        file["0008"].create_dataset("tokens", (rows, 8), "<u2", chunks=(64, 8))
    manifest["splits"]["train"] |= {"rows": rows + 433, "bucket_rows": [rows, 433], "stars": [rows + 433, 0, 0, 0, 0]}
    entry = next(part for part in manifest["parts"] if part["path"] == PART)
    entry |= {"rows": rows + 433, "tokens": rows + 433}
    (folder / "dataset.json").write_text(json.dumps(manifest))
    seal(folder, indexes=False)
    with pytest.raises(DatasetError, match=rf"part-00000\.h5: /0008 has {rows} rows, too many"):
        native.open_dataset(folder)
