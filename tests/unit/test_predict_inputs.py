"""Where the texts come from: every kind of file, what is broken in them, and standard input as it arrives."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import sys
from pathlib import Path

import pytest

from engine import predict_inputs, predict_records
from engine.errors import UsageError
from engine.predict_inputs import argument_texts, blocks_of, file_texts, stream_texts

TEXTS = ["Not good.", "", 'a "quoted", text\nof two lines', "caf\u00e9 \U0001f600", "x" * 5000]


def read(path: Path, column: str | None = None) -> tuple[list[str], list[str]]:
    told: list[str] = []
    return list(file_texts(path, column, told.append)), told


def as_lines(texts: list[str]) -> bytes:
    return "".join(json.dumps({"reviewText": text, "overall": 5.0}) + "\n" for text in texts).encode()


def as_dicts(texts: list[str]) -> bytes:
    return "".join(repr({"overall": 5, "reviewText": text}) + "\r\n" for text in texts).encode()


def as_array(texts: list[str]) -> bytes:
    return b"\xef\xbb\xbf \n" + json.dumps([{"text": text, "n": 10**40} for text in texts], indent=1).encode()


def as_table(texts: list[str]) -> bytes:
    stream = io.StringIO()
    csv.writer(stream).writerows([["rating", " text "], *([5, text] for text in texts)])
    return stream.getvalue().encode()


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize(
    ("name", "write"), [("a.jsonl", as_lines), ("a.json", as_dicts), ("a.json", as_array), ("a.csv", as_table)]
)
def test_every_kind_of_file_gives_its_texts(tmp_path, monkeypatch, name, write, zipped):
    monkeypatch.setattr(predict_inputs, "_READ_BYTES", 61)  # records, and characters, are cut everywhere
    path = tmp_path / (name + ".gz" * zipped)
    content = write(TEXTS)
    path.write_bytes(gzip.compress(content) if zipped else content)
    assert read(path) == (TEXTS, [])


def test_a_text_a_line(tmp_path):
    path = tmp_path / "texts.txt"
    path.write_bytes(b"\xef\xbb\xbfone\r\n\n \xff broken\nlast")
    assert read(path) == (["one", "", " \ufffd broken", "last"], [])
    path.write_bytes(b"one\n\n")
    assert read(path) == (["one", ""], [])
    path.write_bytes(b"")
    assert read(path) == ([], [])
    named_otherwise = tmp_path / "texts.log"
    named_otherwise.write_bytes(gzip.compress(b"one\ntwo"))
    assert read(named_otherwise) == (["one", "two"], [])


def test_what_is_no_review_keeps_its_place_and_is_told_once(tmp_path):
    path = tmp_path / "a.jsonl"
    lines = [
        '{"text": "one"}', "", "{broken", "[1]", '{"reviewText": null}', '{"reviewText": null, "text": "two"}',
        '{"text": 5}', '{"other": "no"}', "{'text': open('x')}", "[" * 100_000, '{"text": "last"}',
    ]  # fmt: skip
    path.write_text("\n".join(lines))
    texts, told = read(path)
    assert texts == ["one", "", "", "", "", "two", "", "", "", "", "last"]
    assert len(told) == 1
    assert "6 lines without a usable text" in told[0]
    assert "line 3: not JSON" in told[0]
    texts, told = read(path, "other")
    assert texts == ["", "", "", "", "", "", "", "no", "", "", ""]
    assert "9 lines" in told[0]
    assert "line 1: no field other" in told[0]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", b'[{"text": "one"}, {"text": ]', "element 2 of the array is not JSON"),
        ("a.json", b'[{"text": "one"}, ', "element 2 of the array is not JSON (the array has no end)"),
        ("a.json", b"[" * 200_000, "nested too deeply"),
        ("a.csv", b"stars,body\n5,good\n", "no column reviewText or text in the CSV header (stars, body)"),
        ("a.csv", b'text\n"open\n' + b"x\n" * 3, ""),
        ("a.jsonl.gz", gzip.compress(b'{"text": "one"}\n' * 9999)[:-20], "the gzip data ends early"),
        ("a.jsonl.gz", gzip.compress(b'{"text": "one"}\n')[:-8] + b"\0" * 8, "damaged gzip data"),
        ("a.h5", b"\x89HDF\r\n\x1a\n\0\0\0", "not a text file in UTF-8"),
    ],
)
def test_a_file_that_is_not_usable_is_told_in_one_line(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    if not message:  # the csv module takes what follows an open quote as one field
        assert read(path)[0] == ["open\n" + "x\n" * 3]
        return
    with pytest.raises(UsageError) as caught:
        read(path)
    assert str(path) in str(caught.value)
    assert message in str(caught.value)


def test_missing_files_and_folders(tmp_path):
    for path, message in ((tmp_path, "a folder"), (tmp_path / "none.txt", "no such file")):
        with pytest.raises(UsageError, match=message):
            read(path)


def test_other_columns(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("stars,body\n5,good\n1\n\n2,bad\n")
    assert read(path, "body")[0] == ["good", "", "", "bad"]


def test_blocks_end_by_number_and_by_size(monkeypatch):
    monkeypatch.setattr(predict_inputs, "BLOCK_TEXTS", 3)
    monkeypatch.setattr(predict_inputs, "BLOCK_CHARACTERS", 10)
    assert list(blocks_of(["a", "b", "c", "d", "e" * 10, "f"])) == [["a", "b", "c"], ["d", "e" * 10], ["f"]]
    assert list(blocks_of([None, "a", None, None, "b", "c"])) == [["a"], ["b", "c"]]
    assert list(blocks_of([])) == []


def test_a_line_without_an_end_does_not_fill_the_memory(monkeypatch, tmp_path):
    monkeypatch.setattr(predict_inputs, "MAX_LINE_BYTES", 10)
    monkeypatch.setattr(predict_inputs, "_READ_BYTES", 7)
    path = tmp_path / "long.txt"
    path.write_bytes(b"x" * 1000 + b"\nshort\n" + b"y" * 11)
    assert read(path)[0] == ["x" * 10, "short", "y" * 10]
    monkeypatch.setattr(predict_records, "MAX_ELEMENT_CHARACTERS", 10)
    (tmp_path / "a.json").write_bytes(b'["' + b"x" * 1000)
    with pytest.raises(UsageError, match="element 1 of the array"):
        read(tmp_path / "a.json")


def test_standard_input_is_answered_as_it_arrives():
    out, into = os.pipe()
    with open(out, encoding="utf-8") as stream, open(into, "wb", buffering=0) as writer:
        blocks = blocks_of(stream_texts(stream))
        writer.write(b"one\ntwo\nthr")
        assert next(blocks) == ["one", "two"]  # while the other end is still open
        writer.write(b"ee\r\n\xff")
        assert next(blocks) == ["three"]
        writer.close()
        assert list(blocks) == [["\ufffd"]]


def test_a_closed_standard_input_is_told():
    with pytest.raises(UsageError, match="standard input is closed"):
        list(stream_texts(None))


def test_arguments_that_are_no_utf8():
    assert list(argument_texts(["caf\udce9", "\U0001f600"])) == ["caf\ufffd", "\U0001f600"]
    assert sys.getfilesystemencoding() == "utf-8"
