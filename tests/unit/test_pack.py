"""From encoded records to the parts of a dataset: the same bytes however the records lie and whoever writes them."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import hdf5plugin  # noqa: F401  (registers LZ4)
import numpy as np
import pytest

from mr import pack as module
from mr.errors import RunError
from mr.records import encode_ids
from native.format import UNFINISHED, DatasetError, read_manifest
from native.part_writer import Layout
from native.text import SPLITS
from native.writer import finish_dataset

BOUNDS = (4, 8, 16)
WORDS = 50
CHUNK_ROWS = 16
ROOT = Path(__file__).parents[2]


def make_rows(number: int, seed: int = 1) -> list[tuple[bytes, bytes]]:
    rng = random.Random(seed)
    rows = []
    for index in range(number):
        split, bucket = rng.choices(range(3), (8, 1, 1))[0], rng.randrange(3)
        length = rng.randint(BOUNDS[bucket - 1] + 1 if bucket else 1, BOUNDS[bucket])
        ids = np.array([rng.randint(1, WORDS + 1) for _ in range(length)], "<u2")
        digest = hashlib.sha256(str(index).encode()).hexdigest()[:32]
        key = f"{split}{bucket:02d}{digest}".encode()
        rows.append((key, b"%d" % rng.randint(1, 5) + encode_ids(ids.tobytes())))
    return sorted(rows)


def layout_of(rows: list[tuple[bytes, bytes]]) -> Layout:
    counts = {split: [0] * len(BOUNDS) for split in SPLITS}
    for key, _ in rows:
        counts[SPLITS[int(key[:1])]][int(key[1:3])] += 1
    return Layout(BOUNDS, {split: tuple(value) for split, value in counts.items()}, WORDS, CHUNK_ROWS)


def put(folder: Path, rows: list[tuple[bytes, bytes]], files: int, seed: int = 0) -> Path:
    folder.mkdir(parents=True)
    rng = random.Random(seed)
    parts: list[list[tuple[bytes, bytes]]] = [[] for _ in range(files)]
    for row in rows:
        rng.choice(parts).append(row)
    for number, part in enumerate(parts):
        lines = b"\n".join(b"%s\t%s" % row for row in part)
        # A cluster's file may lack the last line end, and may be empty.
        (folder / f"part-{number:05d}").write_bytes(lines + (b"\n" if lines and rng.random() < 0.5 else b""))
    return folder


def pack(records: Path, out: Path, layout: Layout, *, key: str, processes: int) -> module.Packed:
    files, work = sorted(records.iterdir()), out.with_name(f"{out.name}.sorted")
    return module.pack(files, out, layout, work=work, key=key, processes=processes)


def finish(out: Path, layout: Layout, packed: dict) -> str:
    counts = {"lines": 0, "kept": 0, "duplicates": 0, "empty": 0, "malformed": 0, "without_rating": 0}
    vocabulary = [f"w{number}" for number in range(WORDS)]
    digest: str = finish_dataset(out, layout, packed, vocabulary, text={}, counts=counts)["digest"]
    return digest


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr("native.part_writer.PART_BYTES", 3000)
    monkeypatch.setattr("mr.sorted_records.SLICE_ROWS", 40)


def test_the_bytes_do_not_depend_on_files_or_processes(tmp_path):
    rows = make_rows(3000)
    layout = layout_of(rows)
    assert len(layout.parts("train")) > 5
    digests = set()
    for case, (files, processes) in enumerate([(1, 1), (1, 3), (4, 1), (7, 2), (40, 3)]):
        records = put(tmp_path / f"records-{case}", rows, files, case)
        (records / "part-99999").touch()
        out = tmp_path / f"out-{case}"
        packed = pack(records, out, layout, key="k", processes=processes)
        digests.add(finish(out, layout, packed))
    assert len(digests) == 1


def test_the_rows_are_those_of_the_records_in_their_order(tmp_path):
    rows = make_rows(800, 5)
    layout = layout_of(rows)
    packed = pack(put(tmp_path / "records", rows, 3), tmp_path / "out", layout, key="k", processes=2)
    found: dict[tuple[str, int], list[tuple[list[int], int]]] = {}
    for split in SPLITS:
        for part in packed[split]:
            with h5py.File(tmp_path / "out" / part["entry"]["path"]) as file:
                for bucket, bound in enumerate(BOUNDS):
                    group = file[f"{bound:04d}"]
                    for tokens, length, stars in zip(group["tokens"], group["lengths"], group["stars"], strict=True):
                        assert not tokens[length:].any()
                        found.setdefault((split, bucket), []).append((tokens[:length].tolist(), int(stars)))
    expected: dict[tuple[str, int], list[tuple[list[int], int]]] = {}
    unknown = 0
    for key, value in rows:
        ids = np.frombuffer(base64.b64decode(value[1:]), "<u2")
        unknown += int((ids == 1).sum())
        expected.setdefault((SPLITS[int(key[:1])], int(key[1:3])), []).append((ids.tolist(), int(value[:1])))
    assert found == expected
    assert sum(part["unknown"] for split in SPLITS for part in packed[split]) == unknown
    assert sum(sum(part["stars"]) for split in SPLITS for part in packed[split]) == len(rows)


@pytest.mark.parametrize("processes", [1, 2])
def test_records_that_came_twice_or_not_at_all_are_refused(tmp_path, processes):
    rows = make_rows(500)
    layout = layout_of(rows)
    twice = put(tmp_path / "twice", rows, 1)
    (twice / "part-00001").write_bytes(b"%s\t%s\n" % rows[123])
    missing = put(tmp_path / "missing", rows[1:], 2)
    for records, told in ((twice, "came twice"), (missing, "were counted")):
        with pytest.raises(RunError, match=told):
            pack(records, tmp_path / f"out-{records.name}", layout, key="k", processes=processes)
    # Where the numbers agree it is found when the slices meet.
    same = put(tmp_path / "same", [*rows[:122], *rows[123:]], 1)
    other = next(row for row in rows if row[0][:3] == rows[122][0][:3] and row[0] != rows[122][0])
    (same / "part-00001").write_bytes(b"%s\t%s\n" % other)
    with pytest.raises(RunError, match="came twice"):
        pack(same, tmp_path / "out-same", layout, key="k", processes=processes)


VICTIM = """
import sys, json
from pathlib import Path
sys.path.insert(0, {tests!r})
import native.part_writer, mr.sorted_records
native.part_writer.PART_BYTES, mr.sorted_records.SLICE_ROWS = 3000, 40
from test_pack import finish, layout_of, make_rows, pack
layout = layout_of(make_rows(4000))
packed = pack(Path({records!r}), Path({out!r}), layout, key="k", processes=2)
print(finish(Path({out!r}), layout, packed))
"""


def test_a_killed_call_is_gone_on_with_and_what_stands_is_not_written_again(tmp_path):
    rows = make_rows(4000)
    records = put(tmp_path / "records", rows, 3)
    layout = layout_of(rows)
    expected = finish(tmp_path / "whole", layout, pack(records, tmp_path / "whole", layout, key="k", processes=1))
    out, rng = tmp_path / "out", random.Random(7)
    code = VICTIM.format(tests=str(Path(__file__).parent), records=str(records), out=str(out))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    stood: dict[str, int] = {}
    for attempt in range(12):
        process = subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, start_new_session=True, env=environment
        )
        if attempt < 11:
            # Killed when so many parts more stand, so that it is in the middle of its work however fast the machine is.
            wanted = len(stood) + rng.randint(1, 2)
            while process.poll() is None and len(_stand(out)) < wanted:
                time.sleep(0.001)
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
        told = process.communicate(timeout=60)[0]
        for path, written in stood.items():
            assert (out / path).stat().st_mtime_ns == written, "a part that stood was written again"
        if process.returncode == 0:
            break
        with pytest.raises(DatasetError):
            read_manifest(out)
        stood = {path: (out / path).stat().st_mtime_ns for path in _stand(out)}
    assert attempt > 2, "it was not killed in the middle of its work"
    assert told.strip() == expected


def _stand(out: Path) -> list[str]:
    try:
        return list(json.loads((out / UNFINISHED).read_text())["parts"])
    except FileNotFoundError:
        return []


def test_another_call_writes_everything_anew(tmp_path):
    rows = make_rows(600)
    layout = layout_of(rows)
    records = put(tmp_path / "records", rows, 2)
    out = tmp_path / "out"
    first = pack(records, out, layout, key="one", processes=1)
    written = (out / "train" / "part-00000.h5").stat().st_mtime_ns
    assert pack(records, out, layout, key="one", processes=1) == first
    assert (out / "train" / "part-00000.h5").stat().st_mtime_ns == written
    assert pack(records, out, layout, key="two", processes=1) == first
    assert (out / "train" / "part-00000.h5").stat().st_mtime_ns > written


def test_a_worker_that_is_killed_ends_the_call_in_one_line(tmp_path, monkeypatch):
    rows = make_rows(600)
    main = os.getpid()

    def die(*_: object) -> None:
        assert os.getpid() != main
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr("mr.pack._rows", die)
    with pytest.raises(RunError, match="was killed, perhaps for want of memory"):
        pack(put(tmp_path / "records", rows, 2), tmp_path / "out", layout_of(rows), key="k", processes=2)
