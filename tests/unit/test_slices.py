"""Inputs of tasks are ranges of files: every line in exactly one of them, equal keys together."""

from __future__ import annotations

import random
from itertools import chain, pairwise
from pathlib import Path

import pytest

from mr.slices import cut, open_slice


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
        with open_slice(piece) as stream:
            assert stream.raw.size == sum(size for _, _, size in piece)
            read += list(stream)
    assert read == [line + b"\n" for lines in contents for line in lines]


def test_pieces_are_about_equal_whatever_the_files(tmp_path):
    paths = files(tmp_path, [[b"a" * 49] * 1000, [b"a" * 49] * 700, [b"a" * 49]])
    sizes = [sum(size for _, _, size in piece) for piece in cut(paths, 4)]
    assert len(sizes) == 4
    assert max(sizes) - min(sizes) <= 150


@pytest.mark.parametrize("seed", range(40))
def test_equal_keys_stay_together(tmp_path, seed):
    draw = random.Random(seed)
    keys = sorted(b"%d" % draw.randint(0, draw.choice([1, 9, 300])) for _ in range(draw.choice([1, 40, 500])))
    (path,) = files(tmp_path, [[key + b"\t" + b"v" * draw.randint(0, 9) for key in keys]])
    pieces = cut([path], draw.randint(1, 8), key=lambda line: line.split(b"\t")[0])
    of_pieces = []
    for piece in pieces:
        with open_slice(piece) as stream:
            of_pieces.append([line.split(b"\t")[0] for line in stream])
    assert list(chain(*of_pieces)) == keys
    assert all(one[-1] != other[0] for one, other in pairwise(of_pieces))


def test_a_file_that_became_shorter_is_told(tmp_path):
    (path,) = files(tmp_path, [[b"a"] * 10])
    (piece,) = cut([path], 1)
    path.write_bytes(b"a\n")
    with open_slice(piece) as stream, pytest.raises(OSError, match="has become shorter"):
        list(stream)
