"""dataset.json and vocabulary.txt: whatever they hold, a DatasetError in one line or the truth."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import native
from native import DatasetError
from native.format import DIGEST_FIELDS, json_digest, read_manifest, read_vocabulary


def refused(folder: Path, message: str) -> None:
    with pytest.raises(DatasetError, match=message) as told:
        native.open_dataset(folder)
    assert "\n" not in str(told.value)
    assert len(str(told.value)) < 500 + len(str(folder))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not readable as JSON"),
        (b"{", "not readable as JSON"),
        (b"\xff\xfe\xff", "not readable as JSON"),
        (b"\x00" * 1000, "not readable as JSON"),
        (b"[" * 500_000, "nested too deeply"),
        (b'{"format":' * 5000, "nested too deeply"),
        (b'{"format": "reviews-hdf5", "version": NaN}', "NaN"),
        (b'{"format": "reviews-hdf5", "version": -Infinity}', "Infinity"),
        (b'{"format": "reviews-hdf5", "version": 1' + b"0" * 5000 + b"}", "not readable as JSON"),
        (b'{"format": "reviews-hdf5", "version": 1.0}', "format version 1.0"),
        (b'{"format": "reviews-hdf5", "version": true}', "format version True"),
        (b'{"format": "reviews-hdf5", "version": "' + b"1" * 10_000 + b'"}', "format version '1"),
        (b'{"format": "reviews-hdf5", "version": 1}', "the fields text, vocabulary"),
        (b"[]", "not a reviews-hdf5 manifest"),
        (b"null", "not a reviews-hdf5 manifest"),
    ],
)
def test_what_is_no_manifest_is_refused(folder, content, message):
    (folder / "dataset.json").write_bytes(content)
    refused(folder, message)


def test_a_manifest_that_is_missing_or_much_too_large_is_refused(folder):
    with (folder / "dataset.json").open("ab") as file:
        file.truncate(1 << 40)  # takes no disk
    refused(folder, r"dataset\.json: not readable \(1,099,511,627,776 bytes")
    (folder / "dataset.json").unlink()
    refused(folder, "not a finished dataset")
    refused(folder / "nowhere", "no such folder")
    refused(folder / "vocabulary.txt", "Not a directory")


def part(manifest: dict[str, Any], **fields: object) -> None:
    manifest["parts"][0] |= fields


def split(manifest: dict[str, Any], **fields: object) -> None:
    manifest["splits"]["train"] |= fields


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda m: m.update(version=2), "format version 2"),
        (lambda m: m.update(parts=[]), "train has no part"),
        (lambda m: m.update(parts="text"), "parts must each have"),
        (lambda m: m.update(parts=7), "parts must each have"),
        (lambda m: m.update(parts=[7]), "parts must each have"),
        (lambda m: m["parts"].pop(), "test has no part"),
        (lambda m: m["parts"].append(m["parts"][0]), "each path once"),
        (lambda m: part(m, path="../../etc/part.h5"), "does not lie in a split's folder"),
        (lambda m: part(m, path="train/../../x.h5"), "does not lie in a split's folder"),
        (lambda m: part(m, path="train/.x.h5"), "does not lie in a split's folder"),
        (lambda m: part(m, path="train/part\0.h5"), "does not lie in a split's folder"),
        (lambda m: part(m, path="train/part\n.h5"), "does not lie in a split's folder"),
        (lambda m: part(m, path="train/part.index"), "does not lie in a split's folder"),
        (lambda m: part(m, path="/etc/passwd.h5"), "does not lie in a split's folder"),
        (lambda m: part(m, path=["train/x.h5"]), "does not lie in a split's folder"),
        (lambda m: part(m, path=f"train/{'x' * 5000}.h5"), "does not lie in a split's folder"),
        (lambda m: part(m, digest="0" * 63), "has no digests"),
        (lambda m: part(m, index_digest=None), "has no digests"),
        (lambda m: part(m, rows=-1), "not numbers that can be"),
        (lambda m: part(m, rows=True), "not numbers that can be"),
        (lambda m: part(m, rows=1e3), "not numbers that can be"),
        (lambda m: part(m, tokens=1 << 70), "not numbers that can be"),
        (lambda m: part(m, tokens=1132), "not numbers that can be"),
        (lambda m: part(m, rows=1132), "rows 1133, bucket_rows 1133, stars 1133, rows of its parts 1132"),
        (lambda m: m.update(chunk_rows=4854406335186724113), "chunk_rows"),  # times the row size it would overflow
        (lambda m: m.update(chunk_rows=0), "chunk_rows"),
        (lambda m: m.update(chunk_rows="64"), "chunk_rows"),
        (lambda m: m.update(chunk_rows=True), "chunk_rows"),
        (lambda m: m.update(chunk_rows=1 << 20, bucket_bounds=[8, 9999]), "more than 1,073,741,824 bytes"),
        (lambda m: m.update(bucket_bounds=[16, 8]), "do not ascend"),
        (lambda m: m.update(bucket_bounds=[8, 8]), "do not ascend"),
        (lambda m: m.update(bucket_bounds=[8, 1 << 40]), "bucket_bounds"),
        (lambda m: m.update(bucket_bounds=[]), "bucket_bounds"),
        (lambda m: m.update(bucket_bounds={"8": 16}), "bucket_bounds"),
        (lambda m: m.update(bucket_bounds=[8, 16, 32]), "splits must give"),
        (lambda m: m.update(token_type="float64"), "token_type"),
        (lambda m: m.update(token_type=["uint16"]), "token_type"),
        (lambda m: m.update(vocabulary={"words": -1}), "number of words"),
        (lambda m: m.update(vocabulary=[]), "number of words"),
        (lambda m: m["vocabulary"].update(digest="x"), "vocabulary has no digest"),
        (lambda m: m.update(text=7), "text holds no settings"),
        (lambda m: m.update(splits={"train": {}}), "splits must give"),
        (lambda m: m.update(splits=[1]), "splits must give"),
        (lambda m: split(m, rows=1 << 62), "splits must give"),
        (lambda m: split(m, rows=1134), "train: rows 1134, bucket_rows 1133"),
        (lambda m: split(m, bucket_rows=[433, 701]), "bucket_rows 1134"),
        (lambda m: split(m, bucket_rows=[701, 432]), r"holds \[700, 433\] rows per bucket"),
        (lambda m: split(m, stars=[1, 1, 1, 1, 1]), "stars 5"),
        (lambda m: split(m, stars=[1133, 0, 0, 0]), "splits must give"),
        (lambda m: m.update(counts=None), "counts must give"),
        (lambda m: m["counts"].update(lines=7), "not the sum of the others"),
        (lambda m: m["counts"].update(kept=None), "counts must give"),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused_though_its_digest_fits(folder, edit, message):
    manifest = json.loads((folder / "dataset.json").read_text())
    edit(manifest)
    manifest["digest"] = json_digest({field: manifest[field] for field in DIGEST_FIELDS})
    (folder / "dataset.json").write_text(json.dumps(manifest))
    refused(folder, message)


@pytest.mark.parametrize("edit", [lambda m: m.update(chunk_rows=32), lambda m: m.update(digest=None)])
def test_a_changed_manifest_is_found_by_its_digest(folder, edit: Callable[[dict[str, Any]], object]):
    manifest = json.loads((folder / "dataset.json").read_text())
    edit(manifest)
    (folder / "dataset.json").write_text(json.dumps(manifest))
    refused(folder, "its digest does not fit its content")


def sign_words(folder: Path, data: bytes) -> None:
    """Other words, with all digests made to fit."""
    (folder / "vocabulary.txt").write_bytes(data)
    manifest = json.loads((folder / "dataset.json").read_text())
    manifest["vocabulary"]["digest"] = hashlib.sha256(data).hexdigest()
    manifest["digest"] = json_digest({field: manifest[field] for field in DIGEST_FIELDS})
    (folder / "dataset.json").write_text(json.dumps(manifest))


def test_a_changed_vocabulary_is_found(folder):
    (folder / "vocabulary.txt").write_text("other\n")
    with native.open_dataset(folder) as data, pytest.raises(DatasetError, match=r"vocabulary.txt.*digest"):
        data.vocabulary()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"word\n" * 59 + b"\xff\n", "not UTF-8 at byte 295"),
        (b"word\n" * 59, "59 words, a line each, where dataset.json says 60"),
        (b"word\n" * 61, "61 words"),
        (b"word\n" * 60 + b"more", "words, a line each"),
        (b"word\n" * 59 + b"word", "words, a line each"),
        (b"", "0 words"),
    ],
)
def test_a_vocabulary_that_is_not_what_the_manifest_says_is_refused(folder, data, message):
    sign_words(folder, data)
    manifest = read_manifest(folder)
    with pytest.raises(DatasetError, match=message):
        read_vocabulary(folder, manifest)


def test_a_vocabulary_that_is_missing_is_told(folder):
    (folder / "vocabulary.txt").unlink()
    with pytest.raises(DatasetError, match=r"vocabulary\.txt: No such file"):
        read_vocabulary(folder, read_manifest(folder))
