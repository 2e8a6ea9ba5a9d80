"""Inputs of tasks are ranges of files: every line in exactly one of them, equal keys together."""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import sys
import time
from itertools import chain
from pathlib import Path

import pytest

from mr.parts import Parts, Sorted, part_of
from mr.slices import Slices, cut


def files(folder: Path, contents: list[list[bytes]]) -> list[Path]:
    paths = [folder / f"part-{number:05d}" for number in range(len(contents))]
    for path, lines in zip(paths, contents, strict=True):
        path.write_bytes(b"".join(line + b"\n" for line in lines))
    return paths


@pytest.mark.parametrize("seed", range(40))
def test_every_line_is_in_one_piece_and_in_order(tmp_path, seed):
    draw = random.Random(seed)
    longest = draw.choice([0, 3, 200])
    contents = [
        [b"x" * draw.randint(0, longest) for _ in range(draw.choice([0, 1, 5, 300]))] for _ in range(draw.randint(0, 4))
    ]
    paths = files(tmp_path, contents)
    pieces = cut(paths, wanted := draw.randint(1, 9))
    assert 1 <= len(pieces) <= wanted
    read = []
    for piece in pieces:
        with Slices(piece).open() as stream:
            assert stream.size == sum(size for _, _, size in piece)
            read += list(stream)
    assert read == [line + b"\n" for lines in contents for line in lines]


def test_pieces_are_about_equal_whatever_the_files(tmp_path):
    paths = files(tmp_path, [[b"a" * 49] * 1000, [b"a" * 49] * 700, [b"a" * 49]])
    sizes = [sum(size for _, _, size in piece) for piece in cut(paths, 4)]
    assert len(sizes) == 4
    assert max(sizes) - min(sizes) <= 150


@pytest.mark.parametrize("seed", range(20))
def test_equal_keys_come_together_and_sorted(tmp_path, seed):
    draw = random.Random(seed)
    records = [b"%d\t%s\n" % (draw.randint(0, draw.choice([1, 300])), b"v" * draw.randint(0, 3)) for _ in range(500)]
    mappers, reducers = draw.randint(1, 3), draw.randint(1, 4)
    outputs = [str(tmp_path / f"mapper-{number}") for number in range(mappers)]
    for number, output in enumerate(outputs):
        with Parts([part_of(output, part) for part in range(reducers)]) as parts:
            parts.writelines(records[number::mappers])
    read = []
    for part in range(reducers):
        with Sorted([part_of(output, part) for output in outputs], ["sort"]).open(sys.stderr) as stream:
            read.append(list(stream))
    assert sorted(chain(*read)) == sorted(records)
    assert all(lines == sorted(lines) for lines in read)
    keys = [{line.split(b"\t")[0] for line in lines} for lines in read]
    assert sum(map(len, keys)) == len(set().union(*keys))
    assert not list(tmp_path.iterdir())


def test_a_sort_that_fails_is_an_error(tmp_path):
    with Parts([tmp_path / "a"]) as parts:
        parts.writelines([b"k\tv\n"])
    with (tmp_path / "errors").open("wb") as errors, pytest.raises(OSError, match="status 2"):  # noqa: SIM117
        with Sorted([tmp_path / "a"], ["sort", "--no-such-option"]).open(errors) as stream:
            list(stream)
    assert (tmp_path / "errors").stat().st_size


def test_a_file_that_became_shorter_is_told(tmp_path):
    (path,) = files(tmp_path, [[b"a"] * 10])
    (piece,) = cut([path], 1)
    path.write_bytes(b"a\n")
    with Slices(piece).open() as stream, pytest.raises(OSError, match="has become shorter"):
        list(stream)


OF_A_TASK = """
import pathlib, sys, time
from mr.parts import Sorted
with Sorted([pathlib.Path(sys.argv[1])], ["sort"]).open(sys.stderr):
    time.sleep(60)
"""
OF_THE_DRIVER = """
import sys
from mr.sorting import sort_lines
sort_lines([sys.argv[1]], sys.argv[1] + ".sorted", ".")
"""
OF_A_THREAD = """
import sys
from concurrent.futures import ThreadPoolExecutor
from mr.sorting import sort_lines
with ThreadPoolExecutor(2) as pool:
    pool.submit(sort_lines, [sys.argv[1]], sys.argv[1] + ".sorted", ".")
"""


@pytest.mark.parametrize("code", [OF_A_TASK, OF_THE_DRIVER, OF_A_THREAD])
def test_a_sort_ends_with_whoever_started_it_and_was_killed(tmp_path, code):
    os.mkfifo(tmp_path / "a")  # without an end, so that sort goes on reading
    command = [sys.executable, "-c", code, str(tmp_path / "a")]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    task = subprocess.Popen(command, start_new_session=True, env=environment, stdout=subprocess.PIPE, cwd=tmp_path)
    with (tmp_path / "a").open("wb"):  # waits for sort to read
        assert running(task.pid) == 2
        task.kill()
        task.communicate()
        deadline = time.monotonic() + 20
        while running(task.pid) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert running(task.pid) == 0


def running(session: int) -> int:
    """Processes of a session that are not dead."""
    count = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended
            state, _, _, of_session = stat.read_text().rsplit(")", 1)[1].split()[:4]
            count += int(of_session) == session and state != "Z"
    return count
