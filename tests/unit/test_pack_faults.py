"""The last step on files of any kind, damaged or strange ones, full disks, and calls that are killed."""

import binascii
import json
import os
import random
import signal
import threading
import time
from bisect import bisect_left
from collections import Counter
from hashlib import blake2b
from multiprocessing import active_children, get_context
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mr import sorted_records
from mr.errors import RunError
from mr.pack import pack
from mr.sorted_records import KEY, PLACE, PREFIX, arranged
from native import DatasetError, DatasetWriter
from native.format import UNFINISHED, read_manifest
from native.part_writer import MAX_PARTS, Layout, PartWriter
from native.text import SPLITS, UNKNOWN_ID
from native.writer import finish_dataset
from tests.limits import limited
from tests.synthetic import make_rows

BOUNDS, WORDS, CHUNK_ROWS, PART_BYTES = (4, 9, 20), 60, 16, 3000
VOCABULARY = [f"word{number}" for number in range(WORDS)]


def make_records(count, seed=1):
    """Lines of encoded reviews, in no order."""
    draws = random.Random(seed)
    lines = []
    for number in range(count):
        ids = np.array([draws.randrange(1, WORDS + 2) for _ in range(draws.randint(1, BOUNDS[-1]))], "<u2")
        digest = blake2b(b"%d %d" % (seed, number), digest_size=16).hexdigest().encode()
        place = draws.choice((0, 0, 0, 1, 2)), bisect_left(BOUNDS, len(ids))
        encoded = binascii.b2a_base64(ids.tobytes(), newline=False)
        lines.append(b"%d%02d%s\t%d%s\n" % (*place, digest, draws.randint(1, 5), encoded))
    draws.shuffle(lines)
    return lines


def layout_of(lines, **more):
    counts = Counter(line[:PLACE] for line in lines)
    rows = {
        split: tuple(counts[b"%d%02d" % (number, bucket)] for bucket in range(len(BOUNDS)))
        for number, split in enumerate(SPLITS)
    }
    return Layout(BOUNDS, rows, WORDS, CHUNK_ROWS, **{"part_bytes": PART_BYTES, **more})


def totals(lines):
    others = {"duplicates": 0, "empty": 0, "malformed": 0, "without_rating": 0}
    return {"lines": len(lines), "kept": len(lines), **others}


def write_files(folder, pieces):
    folder.mkdir()
    for number, piece in enumerate(pieces):
        (folder / f"part-{number:05d}").write_bytes(piece if isinstance(piece, bytes) else b"".join(piece))
    return sorted(folder.iterdir())


def run(files, folder, lines, processes=1, **more):
    """Pack and finish; returns the manifest."""
    layout = layout_of(lines)
    work = folder.with_name(f"{folder.name}.sorted")
    packed = pack(files, folder, layout, **{"work": work, "key": "a", "processes": processes, **more})
    manifest = finish_dataset(folder, layout, packed, VOCABULARY, text={}, counts=totals(lines))
    (folder / UNFINISHED).unlink()
    return manifest


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def lines():
    return make_records(1500)


@pytest.fixture(scope="module")
def expected(lines, tmp_path_factory):
    """All files of the dataset, written row by row: the slow twin."""
    folder = tmp_path_factory.mktemp("expected") / "data"
    layout = layout_of(lines)
    writer = DatasetWriter(
        folder,
        bounds=BOUNDS,
        rows=layout.rows,
        vocabulary=VOCABULARY,
        chunk_rows=CHUNK_ROWS,
        part_bytes=PART_BYTES,
    )
    for line in sorted(lines):
        bucket = int(line[1:PLACE])
        ids = np.frombuffer(binascii.a2b_base64(line[KEY + 2 :]), "<u2")
        tokens = np.zeros((1, BOUNDS[bucket]), int)
        tokens[0, : len(ids)] = ids
        writer.write(
            SPLITS[int(line[:1])], bucket, tokens, np.array([len(ids)]), np.array([int(line[KEY + 1 : KEY + 2])])
        )
    writer.finish(text={}, counts=totals(lines))
    manifest = read_manifest(folder)
    assert len(manifest["parts"]) > 8
    assert all(sum(count > 0 for count in counts) == 3 for counts in layout.rows.values())
    return contents(folder)


@pytest.mark.parametrize("processes", [1, 3])
@pytest.mark.parametrize("kind", ["one sorted", "one unsorted", "many", "sorted, split by hash", "ends cut"])
def test_one_dataset_whatever_the_files_are(lines, expected, tmp_path, processes, kind):
    ordered = sorted(lines)
    pieces = {
        "one sorted": [ordered],
        "one unsorted": [lines],
        "many": [b"", *(lines[start : start + 70] for start in range(0, 1500, 70)), b"", sorted([])],
        "sorted, split by hash": [ordered[number::7] for number in range(7)],
        "ends cut": [b"".join(ordered[::2]).rstrip(b"\n"), b"".join(lines[:0]), b"".join(ordered[1::2][::-1])[:-1]],
    }[kind]
    files = write_files(tmp_path / "encode", pieces)
    before = contents(tmp_path / "encode")
    random.Random(3).shuffle(files)
    run(files, tmp_path / "data", lines, processes)
    assert contents(tmp_path / "data") == expected
    assert contents(tmp_path / "encode") == before


def test_windows_of_any_size_give_the_same(lines, expected, tmp_path, monkeypatch):
    monkeypatch.setattr(sorted_records, "SLICE_ROWS", 1)
    monkeypatch.setattr(sorted_records, "_BLOCK_BYTES", 100)
    run(write_files(tmp_path / "encode", [lines[:800], lines[800:]]), tmp_path / "data", lines)
    assert contents(tmp_path / "data") == expected


def test_unknown_words_and_progress_are_counted(lines, tmp_path):
    told = []
    files = write_files(tmp_path / "encode", [lines])
    packed = pack(
        files, tmp_path / "data", layout_of(lines), work=tmp_path / "w", key="a", processes=2, progress=told.append
    )
    for number, split in enumerate(SPLITS):
        mine = [binascii.a2b_base64(line[KEY + 2 :]) for line in lines if line.startswith(b"%d" % number)]
        unknown = sum(int((np.frombuffer(ids, "<u2") == UNKNOWN_ID).sum()) for ids in mine)
        assert sum(part["unknown"] for part in packed[split]) == unknown > 0
    assert told == sorted(told)
    assert told[-1] == len(lines)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 60), st.integers(1, 300), st.booleans(), st.integers(0, 99))
def test_records_are_counted_in_blocks_of_any_size(tmp_path_factory, count, block, in_order, seed):
    lines = make_records(count, seed)
    lines = sorted(lines) if in_order else lines
    folder = tmp_path_factory.mktemp("count")
    (folder / "part-00000").write_bytes(b"".join(lines))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sorted_records, "_BLOCK_BYTES", block)
        path, counts = arranged(folder / "part-00000", folder / "work")
    assert path.read_bytes() == b"".join(sorted(lines))
    assert (path.parent == folder) == (lines == sorted(lines))
    found = {
        place + b"%0*x" % (PREFIX, number): int(slices[number])
        for place, slices in counts.items()
        for number in np.flatnonzero(slices)
    }
    assert found == Counter(line[: PLACE + PREFIX] for line in lines)


def _pack_in_a_group_of_its_own(files, folder, lines):
    os.setsid()
    run(files, folder, lines, processes=2)


def _journal(folder):
    try:
        return json.loads((folder / UNFINISHED).read_text())["parts"]
    except FileNotFoundError:
        return {}


def _started(files, folder, lines):
    process = get_context("fork").Process(target=_pack_in_a_group_of_its_own, args=(files, folder, lines))
    process.start()
    while process.is_alive() and os.getpgid(process.pid) != process.pid:
        time.sleep(0.001)
    return process


def _wait(process, folder, parts):
    """Until so many parts stand or it ended."""
    while process.is_alive() and len(_journal(folder)) < parts:
        time.sleep(0.001)


@pytest.mark.parametrize("seed", range(3))
def test_a_killed_call_is_gone_on_with(lines, expected, tmp_path, seed):
    draws = random.Random(seed)
    folder = tmp_path / "data"
    files = write_files(tmp_path / "encode", [lines[:700], sorted(lines[700:])])
    kills, stood = 0, {}
    while kills < 4:
        process = _started(files, folder, lines)
        _wait(process, folder, len(stood) + draws.randint(0, 2))
        time.sleep(draws.random() * 0.01)
        if not process.is_alive():
            break
        os.killpg(process.pid, signal.SIGKILL)
        process.join()
        kills += 1
        with pytest.raises(DatasetError):
            read_manifest(folder)
        now = {path: (folder / path).stat().st_ino for path in _journal(folder)}
        assert now.items() >= stood.items(), "a part that stood was written again"
        stood = now
    assert kills
    run(files, folder, lines, processes=2)
    assert {path: (folder / path).stat().st_ino for path in stood} == stood
    assert contents(folder) == expected


def _children(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_workers_end_with_their_driver(lines, tmp_path):
    files = write_files(tmp_path / "encode", [lines])
    process = _started(files, tmp_path / "data", lines)
    _wait(process, tmp_path / "data", 1)
    workers = _children(process.pid)
    assert workers
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    while any(Path(f"/proc/{worker}").exists() for worker in workers):  # a test that hangs fails by its time limit
        time.sleep(0.01)


def test_a_worker_that_is_killed_ends_the_call_with_one_line(lines, expected, tmp_path):
    folder = tmp_path / "data"
    files = write_files(tmp_path / "encode", [lines])

    def kill_one():
        while not _journal(folder):
            time.sleep(0.001)
        os.kill(active_children()[0].pid, signal.SIGKILL)

    killer = threading.Thread(target=kill_one)
    killer.start()
    with pytest.raises(RunError, match="was killed") as caught:
        run(files, folder, lines, processes=2)
    killer.join()
    assert "\n" not in str(caught.value)
    # Not active_children(): two threads that wait for one process leave it there for ever.
    assert not psutil.Process().children()
    run(files, folder, lines, processes=2)
    assert contents(folder) == expected


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("size", [300, 2000, 5000])
def test_a_full_disk_is_one_line_and_leaves_nothing_that_looks_whole(lines, expected, tmp_path, processes, size):
    files = write_files(tmp_path / "encode", [sorted(lines)])
    with limited(size), pytest.raises(OSError, match="File too large") as caught:
        run(files, tmp_path / "data", lines, processes)
    assert "\n" not in str(caught.value)
    assert str(tmp_path / "data") in str(caught.value.filename)
    with pytest.raises(DatasetError):
        read_manifest(tmp_path / "data")
    run(files, tmp_path / "data", lines, processes)
    assert contents(tmp_path / "data") == expected


def test_no_room_to_sort_is_one_line(lines, tmp_path):
    files = write_files(tmp_path / "encode", [lines])
    with limited(1000), pytest.raises(RunError, match=r"not be sorted: .*SIGXFSZ.*check space") as caught:
        run(files, tmp_path / "data", lines)
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "data.sorted").iterdir())


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("kind", ["sorted", "unsorted", "two files"])
def test_a_record_that_came_twice_is_refused(lines, tmp_path, processes, kind):
    twice = lines[3]
    pieces = {
        "sorted": [sorted([*lines, twice])],
        "unsorted": [[*lines, twice[:-2] + b"=\n"]],
        "two files": [sorted(lines), [twice]],
    }[kind]
    files = write_files(tmp_path / "encode", pieces)
    with pytest.raises(RunError, match=f"{twice[:KEY].decode()} came twice"):
        run(files, tmp_path / "data", lines, processes)
    assert not list((tmp_path / "data").glob("*/*.h5"))


def test_rows_that_are_missing_or_strange_are_refused(lines, tmp_path):
    first = lines[0]
    for number, (pieces, words) in enumerate([
        ([lines[1:]], "were counted"),
        ([[line for line in lines if line != first] + [b"299" + first[PLACE:]]], "were counted"),
        ([[*lines, b"300" + lines[0][3:]]], "were counted"),
        ([[*lines, b"n words\t12\n"]], "is no record"),
        ([[*lines, b"q" + lines[0]]], "is no record"),
        ([[*lines[1:], lines[0][: KEY + 2] + b"AAA\n"]], "no base64"),
        ([[*lines[1:], lines[0][: KEY + 2] + b"A" * 400 + b"\n"]], "tokens"),
    ]):  # fmt: skip
        files = write_files(tmp_path / f"encode{number}", pieces)
        with pytest.raises(RunError, match=words):
            run(files, tmp_path / f"data{number}", lines)


def test_a_part_that_was_lost_or_damaged_is_written_again(lines, expected, tmp_path):
    folder, files = tmp_path / "data", write_files(tmp_path / "encode", [lines])
    pack(files, folder, layout_of(lines), work=tmp_path / "w", key="a", processes=1)
    paths = sorted(folder.glob("*/*.h5"))
    paths[0].unlink()
    paths[1].write_bytes(paths[1].read_bytes()[:-1] + b"?")
    kept = {path: path.stat().st_ino for path in paths[2:]}
    run(files, folder, lines)
    assert {path: path.stat().st_ino for path in paths[2:]} == kept
    assert contents(folder) == expected


def test_what_another_call_left_unfinished_goes_and_all_else_stays(lines, expected, tmp_path):
    folder, files = tmp_path / "data", write_files(tmp_path / "encode", [lines])
    pack(files, folder, layout_of(lines, part_bytes=500), work=tmp_path / "w", key="other", processes=1)
    run(files, folder, lines)
    assert contents(folder) == expected
    with pytest.raises(DatasetError, match="not empty"):
        run(files, folder, lines)
    assert contents(folder) == expected


def test_what_a_kill_left_of_the_first_file_is_no_dataset_of_others(lines, expected, tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / f".{UNFINISHED}.123.part").write_bytes(b"{")
    run(write_files(tmp_path / "encode", [lines]), folder, lines)
    assert contents(folder) == expected


def test_a_split_has_no_more_parts_than_a_reader_may_hold_open():
    nothing = {"validation": (0,), "test": (0,)}
    parts = Layout((100,), {"train": (200_000_000,), **nothing}, WORDS).parts("train")
    assert len(parts) == MAX_PARTS
    assert sum(part.rows[0] for part in parts) == 200_000_000


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(0, 400), min_size=1, max_size=14), st.integers(1, 200), st.booleans(), st.integers(0, 9))
def test_a_part_has_the_bytes_of_a_file_that_libhdf5_closed(tmp_path_factory, rows, chunk_rows, compress, seed):
    """Parts are made in memory; datasets that were written before to the disk keep their digests."""
    folder, draws = tmp_path_factory.mktemp("part"), np.random.default_rng(seed)
    bounds = tuple(7 * (number + 1) for number in range(len(rows)))
    none = (0,) * len(rows)
    layout = Layout(bounds, {"train": tuple(rows), "validation": none, "test": none}, WORDS, chunk_rows, compress)
    columns = [make_rows(draws, count, bound, WORDS) for count, bound in zip(rows, bounds, strict=True)]

    def write(into):
        writer = PartWriter(into, layout, layout.parts("train")[0])
        for bucket, column in enumerate(columns):
            writer.take(bucket, *column)
        writer.close()
        return (into / "train/part-00000.h5").read_bytes()

    def on_disk(name, mode, libver, **_):
        return h5py.File(folder / "disk.h5", mode, libver=libver) if mode == "w" else h5py.File(name, mode)

    (folder / "memory").mkdir()
    (folder / "patched").mkdir()
    in_memory = write(folder / "memory")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("native.part_writer.h5py", SimpleNamespace(File=on_disk))
        write(folder / "patched")
    assert in_memory == (folder / "disk.h5").read_bytes()
