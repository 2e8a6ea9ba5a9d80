"""Reader and writer: against plain h5py row by row, and on damaged files."""

from __future__ import annotations

import hashlib
import json
import threading
from contextlib import nullcontext
from pathlib import Path

import h5py
import hdf5plugin
import numpy as np
import pytest
import xxhash
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import native
from native import DatasetError, DatasetWriter
from native.dataset import BatchBuffer
from native.format import file_digest, group_name
from tests.synthetic import seal, write_dataset


class SlowTwin:
    """The oracle: opens the parts with plain h5py and fetches each row by itself."""

    def __init__(self, folder: Path, split: str) -> None:
        self.manifest = json.loads((folder / "dataset.json").read_text())
        parts = [part["path"] for part in self.manifest["parts"] if part["path"].startswith(split)]
        self.files = [h5py.File(folder / path) for path in parts]

    def row(self, bucket: int, row: int) -> tuple[np.ndarray, int, int]:
        for file in self.files:
            group = file[group_name(self.manifest["bucket_bounds"][bucket])]
            if row < len(group["lengths"]):
                return group["tokens"][row], int(group["lengths"][row]), int(group["stars"][row])
            row -= len(group["lengths"])
        raise IndexError


def assert_same(folder: Path, split: str, bucket: int, rows: np.ndarray, batch: native.Batch) -> None:
    twin = SlowTwin(folder, split)
    for place, row in enumerate(rows):
        tokens, length, stars = twin.row(bucket, int(row))
        assert batch.tokens[place].tolist() == tokens.tolist()
        assert (batch.lengths[place], batch.stars[place]) == (length, stars)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    bound=st.integers(1, 40),
    rows=st.integers(1, 300),
    chunk_rows=st.integers(1, 90),
    words=st.sampled_from([9, 70_000]),
    compress=st.booleans(),
    cache=st.sampled_from([1, 1 << 20]),
    part_bytes=st.sampled_from([200, 1 << 20]),
    seed=st.integers(0, 99),
)
def test_random_shapes_read_as_the_slow_twin_reads_them(
    tmp_path_factory, bound, rows, chunk_rows, words, compress, cache, part_bytes, seed
):
    folder = tmp_path_factory.mktemp("data")
    write_dataset(
        folder,
        bounds=[bound],
        rows={"train": [rows]},
        words=words,
        chunk_rows=chunk_rows,
        compress=compress,
        part_bytes=part_bytes,
        seed=seed,
    )
    wanted = np.random.default_rng(seed).integers(0, rows, 40)
    with native.open_dataset(folder, "train", cache_bytes=cache) as data:
        assert_same(folder, "train", 0, wanted, data.read_bucket(0, wanted))
        assert len(data) == rows


@pytest.fixture
def folder(tmp_path):
    write_dataset(tmp_path / "data")
    return tmp_path / "data"


def test_what_was_written_is_read_in_every_bucket_and_split(tmp_path):
    content = write_dataset(tmp_path / "data")
    for split, buckets in content.items():
        with native.open_dataset(tmp_path / "data", split) as data:
            for bucket, (tokens, lengths, stars) in enumerate(buckets):
                batch = data.read_bucket(bucket, np.arange(len(lengths)))
                assert np.array_equal(batch.tokens, tokens)
                assert np.array_equal(batch.lengths, lengths)
                assert np.array_equal(batch.stars, stars)


def test_mixed_rows_come_in_the_order_asked_padded_to_the_widest(folder):
    twin = SlowTwin(folder, "train")
    with native.open_dataset(folder) as data:
        batch = data.read([0, 1132, 5, 700, 5])
    assert batch.tokens.shape == (5, 16)
    for place, (bucket, row) in enumerate([(0, 0), (1, 432), (0, 5), (1, 0), (0, 5)]):
        tokens, length, stars = twin.row(bucket, row)
        assert batch.tokens[place, : len(tokens)].tolist() == tokens.tolist()
        assert not batch.tokens[place, len(tokens) :].any()
        assert (batch.lengths[place], batch.stars[place]) == (length, stars)


def test_a_buffer_is_reused_and_nothing_is_allocated_for_it(folder):
    buffer = BatchBuffer(100, 16)
    with native.open_dataset(folder) as data:
        first = data.read_bucket(1, np.arange(100), buffer)
        second = data.read_bucket(0, np.arange(50), buffer)
        assert np.shares_memory(first.tokens, second.tokens)
        assert np.array_equal(second.tokens, data.read_bucket(0, np.arange(50)).tokens)


def test_a_chunk_is_decoded_once_while_the_cache_holds_it(folder):
    with native.open_dataset(folder) as data:
        for _ in range(5):
            data.read_bucket(0, np.arange(700))
        assert data.chunks_decoded == 11
    with native.open_dataset(folder, cache_bytes=1) as data:  # room for one chunk a bucket
        for _ in range(3):
            data.read_bucket(0, np.arange(700))
        assert data.chunks_decoded == 33


def test_threads_may_share_a_split(folder):
    with native.open_dataset(folder, cache_bytes=1) as data:
        expected = data.read_bucket(0, np.arange(700)).tokens
        wrong = []

        def read(seed: int) -> None:
            for _ in range(30):
                rows = np.random.default_rng(seed).integers(0, 700, 64)
                if not np.array_equal(data.read_bucket(0, rows).tokens, expected[rows]):
                    wrong.append(seed)

        threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong


@pytest.mark.parametrize("row", [-1, 700, 2**40])
def test_rows_outside_are_refused(folder, row):
    with native.open_dataset(folder) as data:
        with pytest.raises(IndexError, match="700 rows"):
            data.read_bucket(0, np.array([3, row]))
        with pytest.raises(IndexError):
            data.read([row if row != 700 else 1133])


def test_a_closed_split_says_so(folder):
    data = native.open_dataset(folder)
    data.close()
    with pytest.raises(DatasetError, match="closed"):
        data.read([0])


def test_equal_content_gives_equal_bytes(tmp_path):
    for name in ("one", "two"):
        write_dataset(tmp_path / name)
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*") if path.is_file())
    assert len(files) == 8
    for path in files:
        assert (tmp_path / "one" / path).read_bytes() == (tmp_path / "two" / path).read_bytes(), path


def test_the_files_are_what_the_contract_says(folder):
    manifest = json.loads((folder / "dataset.json").read_text())
    words = (folder / "vocabulary.txt").read_bytes()
    assert manifest["vocabulary"] == {"words": 60, "digest": hashlib.sha256(words).hexdigest()}
    assert manifest["bucket_bounds"] == [8, 16]
    for part in manifest["parts"]:
        assert part["digest"] == file_digest(folder / part["path"])
        index = (folder / part["path"]).with_suffix(".index").read_bytes()
        assert part["index_digest"] == hashlib.sha256(index[24:]).hexdigest()
        with h5py.File(folder / part["path"]) as file:
            assert sorted(file) == ["0008", "0016"]
            assert part["rows"] == sum(len(file[name]["stars"]) for name in file)
            assert part["tokens"] == sum(int(file[name]["lengths"][:].sum()) for name in file)
            for name, group in file.items():
                tokens = group["tokens"]
                assert tokens.dtype == np.uint16
                assert tokens.chunks == (64, int(name))
                assert (group["lengths"].dtype, group["stars"].dtype) == (np.uint16, np.uint8)
                for number, checksum in enumerate(group["checksums"]):
                    assert checksum == xxhash.xxh3_64_intdigest(tokens.id.read_direct_chunk((number * 64, 0))[1])


def test_only_a_buckets_last_chunk_is_short_across_parts(tmp_path):
    write_dataset(tmp_path / "data", rows={"train": [700, 433]}, part_bytes=4000)
    manifest = json.loads((tmp_path / "data" / "dataset.json").read_text())
    paths = [part["path"] for part in manifest["parts"] if part["path"].startswith("train")]
    assert len(paths) > 3
    for name in ("0008", "0016"):
        counts = [len(h5py.File(tmp_path / "data" / path)[name]["stars"]) for path in paths]
        filled = [count for count in counts if count]
        assert all(count % 64 == 0 for count in filled[:-1])


@pytest.mark.parametrize("kind", ["gzip", "contiguous", "other chunk filter"])
def test_layouts_that_others_write_stay_readable(tmp_path, kind):
    folder = tmp_path / "data"
    content = write_dataset(folder, rows={"train": [300, 10]})
    path = folder / "train/part-00000.h5"
    options = {
        "gzip": {"compression": "gzip"},
        "contiguous": {"chunks": None},
        "other chunk filter": hdf5plugin.Zstd(),
    }[kind]
    with h5py.File(path, "a") as file:
        for group in file.values():
            tokens = group["tokens"][:]
            del group["tokens"]
            chunks = (
                {} if kind == "contiguous" else {"chunks": (64, tokens.shape[1]), "maxshape": (10_000, tokens.shape[1])}
            )
            group.create_dataset("tokens", data=tokens, **{**chunks, **options})
            stored = (
                [group["tokens"].id.read_direct_chunk((start, 0))[1] for start in range(0, len(tokens), 64)]
                if chunks
                else [tokens[start : start + 64].tobytes() for start in range(0, len(tokens), 64)]
            )
            group["checksums"][:] = [xxhash.xxh3_64_intdigest(chunk) for chunk in stored]
    seal(folder)
    with pytest.warns(RuntimeWarning, match="h5py") if kind != "contiguous" else nullcontext():
        data = native.open_dataset(folder)
    rows = np.random.default_rng(1).permutation(300)
    assert np.array_equal(data.read_bucket(0, rows).tokens, content["train"][0][0][rows])
    assert np.array_equal(data.read_bucket(0, rows).stars, content["train"][0][2][rows])


def test_without_the_native_codecs_reading_goes_through_h5py(folder, monkeypatch):
    expected = native.open_dataset(folder).read(range(1133))
    monkeypatch.setattr("native.parts.load_codecs", lambda: None)
    with pytest.warns(RuntimeWarning, match="h5py"):
        data = native.open_dataset(folder)
    found = data.read(range(1133))
    assert np.array_equal(found.tokens, expected.tokens)
    assert np.array_equal(found.stars, expected.stars)


def test_the_writer_refuses_what_does_not_fit(tmp_path):
    def writer(name: str) -> DatasetWriter:
        return DatasetWriter(tmp_path / name, bounds=[4], rows={"train": [2]}, vocabulary=["a"])

    good = (np.array([[2, 1, 0, 0]]), np.array([2]), np.array([5]))
    for number, (tokens, lengths, stars) in enumerate(
        [
            (np.array([[3, 0, 0, 0]]), *good[1:]),
            (good[0], np.array([5]), good[2]),
            (good[0], good[1], np.array([0])),
            (np.zeros((1, 3), int), *good[1:]),
        ]
    ):
        with pytest.raises(DatasetError):
            writer(f"wrong{number}").write("train", 0, tokens, lengths, stars)
    counts = {"lines": 2, "kept": 2, "duplicates": 0, "empty": 0, "malformed": 0, "without_rating": 0}
    short = writer("short")
    short.write("train", 0, *good)
    with pytest.raises(DatasetError, match="announced"):
        short.finish(text={}, counts=counts)
    full = writer("full")
    full.write("train", 0, *good)
    full.write("train", 0, *good)
    with pytest.raises(DatasetError, match="than announced"):
        full.write("train", 0, *good)
    with pytest.raises(DatasetError, match="sum"):
        full.finish(text={}, counts={**counts, "lines": 3})
    with pytest.raises(DatasetError, match="not empty"):
        writer("full")
    full.abort()
    assert list((tmp_path / "full").iterdir()) == []


def test_rows_must_be_numbers(folder):
    with native.open_dataset(folder) as data, pytest.raises(TypeError, match="bool"):
        data.read_bucket(0, np.array([True, False]))
