"""The input in pieces, read by several processes: the same records with the same numbers, and changes are met."""

from __future__ import annotations

import gzip
import os
import random
import signal
from collections import Counter
from pathlib import Path

import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from mr import pieces as module
from mr import reading
from mr.errors import RunError, UsageError
from mr.ingest import ingest
from mr.pieces import Piece, PieceSource, expected_bytes, grouped, look, whole_files
from mr.reading import read_records
from mr.review import Fields
from mr.shards import decode_record

BOM = b"\xef\xbb\xbf"


def records(source, line=1):
    return [(number, record) for _, number, record in read_records(source, Fields(), line=line)]


@given(
    lines=st.lists(st.binary(max_size=30).map(lambda line: line.replace(b"\n", b"x") + b"end"), max_size=60),
    ends=st.lists(st.sampled_from([b"\n", b"\n", b"\r\n", b"\n\n", b""]), min_size=60, max_size=60),
    begin=st.sampled_from([b"", BOM, b"\n", b"  "]),
    sizes=st.tuples(st.integers(1, 200), st.integers(1, 90)),
)
@settings(max_examples=150, deadline=None)
def test_pieces_hold_the_records_of_the_file_with_their_numbers(tmp_path_factory, lines, ends, begin, sizes):
    data = begin + b"".join(line + end for line, end in zip(lines, ends, strict=False))
    path = tmp_path_factory.mktemp("look") / "x.json"
    path.write_bytes(data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "PIECE_BYTES", sizes[0])
        for each in (module, reading):
            patch.setattr(each, "BLOCK_BYTES", sizes[1])
        patch.setattr(reading, "_is_binary", lambda _: False)  # it judges a whole block
        digests, pieces = look([path])
        assert digests == [["x.json", xxhash.xxh3_128_hexdigest(data)]]
        found, place = [], 0
        for piece in pieces:
            source = PieceSource(piece)
            found += records(source, piece.line)
            assert piece.start == place
            assert not place or data[place - 1 : place] == b"\n"
            assert source.digest() == piece.digest
            assert piece.digest == xxhash.xxh3_128_hexdigest(data[place : place + piece.size])
            place += piece.size
        assert place == len(data)
        assert [piece.ends for piece in pieces] == [False] * (len(pieces) - 1) + [True]
        assert found == records(path)


def test_what_is_no_file_of_lines_stays_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PIECE_BYTES", 10)
    monkeypatch.setattr(module, "BLOCK_BYTES", 16)
    lines = b'{"text": "a", "rating": 1}\n' * 20
    files = {
        "a.json": b" \n[" + b",".join(lines.splitlines(keepends=True)) + b"]",
        "b.csv": b"text,rating\n" + b"a,1\n" * 50,
        "c.jsonl.gz": gzip.compress(lines),
        "d.csv.GZ": gzip.compress(b"text,rating\n" + b"a,1\n" * 50),
        "e.json": BOM + b"[" + lines,
        "f.jsonl": b"",
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    paths = [tmp_path / name for name in files]
    told = []
    digests, pieces = look(paths, told.append)
    assert digests == [[name, xxhash.xxh3_128_hexdigest(data)] for name, data in files.items()]
    assert [(piece.path, piece.size, piece.ends) for piece in pieces] == [
        (path, path.stat().st_size, True) for path in paths
    ]
    assert told == sorted(told)
    assert told[-1] == sum(map(len, files.values()))
    (tmp_path / "lines.jsonl").write_bytes(lines)
    assert len(look([tmp_path / "lines.jsonl"])[1]) > 10


def piece(number: int, size: int, name: str = "x.json") -> Piece:
    return Piece(number, Path(name), size)


@given(st.lists(st.tuples(st.integers(0, 1 << 28), st.booleans()), max_size=50), st.integers(1, 64))
def test_groups_hold_all_pieces_in_order_and_are_neither_many_nor_large(sizes, processes):
    pieces = [piece(number, size, "x.json.gz" if packed else "x.json") for number, (size, packed) in enumerate(sizes)]
    groups = grouped(pieces, processes)
    assert [each for group in groups for each in group] == pieces
    total, largest = sum(map(expected_bytes, pieces)), max(map(expected_bytes, pieces), default=0)
    assert len(groups) <= max(4 * processes, total // module.GROUP_BYTES) + 1
    for group in groups:
        assert sum(map(expected_bytes, group)) <= module.GROUP_BYTES + largest


def test_many_small_files_make_few_tasks_and_a_large_one_enough():
    assert len(grouped([piece(number, 1000) for number in range(10_000)], 2)) <= 11
    large = [piece(0, module.PIECE_BYTES) for _ in range(14)]
    assert 7 <= len(grouped(large, 2)) <= 9
    assert len(grouped(large * 100, 2)) == 14 * 100 * module.PIECE_BYTES // module.GROUP_BYTES + 1


@pytest.fixture
def small(monkeypatch):
    """Pieces and groups of some hundred bytes."""
    monkeypatch.setattr(module, "PIECE_BYTES", 300)
    monkeypatch.setattr(module, "BLOCK_BYTES", 100)
    monkeypatch.setattr(module, "_LEAST_GROUP_BYTES", 500)


def write_files(folder: Path) -> list[Path]:
    draws = random.Random(3)
    files = {
        "a.json": b"".join(b'{"n": %d}%s\n' % (number, b" " * draws.randint(0, 40)) for number in range(200)),
        "b.json": b'[{"a": 1},\n{"a": 2},\n\n{"a": 3}]\n{"b": 1}',
        "c.jsonl.gz": gzip.compress(b"".join(b"%d\r\n" % number for number in range(500))),
        "d.json": b"",
        "e.csv": b'text,rating\n"a\nb",1\nc,2',
        "f.json": b'\xff{"n": 1}\n\n{"n": 2}',
    }
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return [folder / name for name in files]


@pytest.mark.parametrize("processes", [1, 2, 5])
def test_any_number_of_processes_makes_the_same_shard_lines(tmp_path, small, processes):
    paths = write_files(tmp_path)
    expected = [
        (number, line, record) for number, path in enumerate(paths) for _, line, record in read_records(path, Fields())
    ]
    counts = Counter(number for number, _, _ in expected)
    folder = tmp_path / "shards"
    folder.mkdir()
    told = []
    pieces = look(paths)[1]
    assert len(pieces) > 15
    made = ingest(
        pieces, folder, Fields(), processes=processes, progress=lambda *done: told.append(done), shard_bytes=2000
    )
    found = [decode_record(line) for path in made.shards for line in path.read_bytes().splitlines()]
    assert found == expected
    assert made.lines == [counts[number] for number in range(len(paths))]
    assert sorted(folder.iterdir()) == made.shards
    assert told[-1] == (sum(path.stat().st_size for path in paths), len(expected), made.bytes)


def test_files_that_were_not_looked_at_have_their_digests_afterwards(tmp_path):
    paths = write_files(tmp_path)
    (tmp_path / "shards").mkdir()
    made = ingest(whole_files(paths), tmp_path / "shards", Fields())
    assert made.digests == [xxhash.xxh3_128_hexdigest(path.read_bytes()) for path in paths]


@pytest.mark.parametrize("processes", [1, 3])
@pytest.mark.parametrize("change", ["grown", "cut", "another byte at the end", "in the middle", "emptied", "a .gz"])
def test_a_file_that_changes_after_it_was_looked_at_is_told(tmp_path, small, processes, change):
    paths = write_files(tmp_path)
    pieces = look(paths)[1]
    data = paths[0].read_bytes()
    middle = len(data) // 2
    changed = {
        "grown": data + b"{}\n",
        "cut": data[:-30],
        "another byte at the end": data[:-1] + b" ",
        "in the middle": data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :],
        "emptied": b"",
    }
    if change == "a .gz":
        paths[2].write_bytes(gzip.compress(b"other lines\n"))
    else:
        paths[0].write_bytes(changed[change])
    (tmp_path / "shards").mkdir()
    with pytest.raises(UsageError, match=r"changed while it was read; run it again") as caught:
        ingest(pieces, tmp_path / "shards", Fields(), processes=processes)
    assert str(paths[2 if change == "a .gz" else 0]) in str(caught.value)


def test_a_process_that_is_killed_while_it_reads_is_one_line(tmp_path, small, monkeypatch):
    driver = os.getpid()

    def encode(*_):
        assert os.getpid() != driver, "a process of its own was asked for"
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr("mr.ingest.encode_record", encode)
    (tmp_path / "shards").mkdir()
    with pytest.raises(RunError, match=r"SIGKILL.* while it read the input.*fewer --cores") as caught:
        ingest(look(write_files(tmp_path))[1], tmp_path / "shards", Fields(), processes=2)
    assert "\n" not in str(caught.value)
