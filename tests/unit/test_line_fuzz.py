"""Mutated lines through the parser: no crash, every line accounted for. All of them: LINE_FUZZ=100000."""

import csv
import io
import json
import os
import random
from collections import Counter
from pathlib import Path

from mr.cli import main
from mr.reading import read_records
from mr.review import Fields, Malformed, parse_review
from mr.shards import decode_record, encode_record
from native.format import COUNT_FIELDS, read_manifest

COUNT = int(os.environ.get("LINE_FUZZ", "5000"))
WORDS = ("isn't", "&amp;", "caf\u00e9", "\ud83d", "a, b", '"quoted"', "two\nlines", "\U0001f44d", "<br />", "\\", "")
BYTES = b"\"'{}[](),:\\\r\t\x00\xff\xe2\xf0 -+5ae.u#"
PIECES = (b"[" * 300, b"{'a':" * 150, b"9" * 5000, b"1e999", b"NaN", b"\\ud83d", b"\\u12", b"\xed\xa0\x80", b"\x00" * 9,
          b"\xef\xbb\xbf", b"'''", b'""', b"null", b"x" * 3000, b"-" * 500, b"1+" * 2000, b"\r", b"\xc2\x85",
          b"\xe2\x80\xa8", b"{'", b'{"')  # fmt: skip
ABSURD = (b"{'text': " + b"(" * 100_000, b'{"text": "' + b"a b " * 2_500_000 + b'", "rating": 5}', b"\xff" * 100_000,
          b'{"rating": 0.' + b"1" * 1_000_000 + b', "text": "a"}', b"[" * 1_000_000, b"{'text': 1" + b"-1" * 100_000,
          b'{"text": ' * 200_000, b"'" * 200_000, b"{'" + b"\\'" * 100_000, b"\x00" * 100_000)  # fmt: skip


def mutated(draw, line):
    """The line with up to five changes: bytes, pieces put in, parts taken out, doubled or moved."""
    for _ in range(draw.choice((0, 1, 1, 2, 3, 5))):
        at, to = sorted((draw.randrange(len(line) + 1), draw.randrange(len(line) + 1)))
        kind = draw.randrange(6)
        if kind < 2:
            line[at : at + 1] = bytes([draw.choice(BYTES)])
        elif kind == 2:
            line[at:at] = draw.choice(PIECES)
        elif kind == 3:
            del line[at : min(to, at + 20)]
        elif kind == 4:
            line[at:at] = line[at : min(to, at + 50)]
        else:
            line[to:to] = line[at : min(to, at + 20)]
    return bytes(line)


def review(draw, number):
    text = " ".join([f"text {number}", *draw.choices(WORDS, k=4)])
    return {draw.choice(("reviewText", "text")): text, draw.choice(("overall", "rating")): 1 + number % 5}


def json_lines(draw):
    """JSON and Python dicts."""
    for number in range(COUNT):
        found = review(draw, number)
        line = json.dumps(found) if draw.randrange(3) else str(found).encode("utf-8", "surrogatepass").decode("latin-1")
        yield mutated(draw, bytearray(line, "latin-1")).replace(b"\n", b" ")


def csv_lines(draw):
    for number in range(COUNT):
        stream = io.StringIO()
        csv.writer(stream, lineterminator="").writerow([number, *review(draw, number).values()])
        yield mutated(draw, bytearray(stream.getvalue().encode("utf-8", "replace")))


def outcomes(path):
    """How each record of a file ends, sent through a shard as in a run."""
    found: Counter[str] = Counter()
    for count, line, record in read_records(path, Fields()):
        sent = encode_record(0, line, record)
        assert sent.count(b"\n") == 1
        assert b"\r" not in sent
        sent.decode()
        _, same_line, record = decode_record(sent.removesuffix(b"\n"))
        assert same_line == line
        found["records"] = count
        if not isinstance(record, Malformed):
            record = parsed(record)
        if isinstance(record, Malformed):
            assert record.kind.isascii()
            assert len(str(record)) < 200
            found["malformed"] += 1
        else:
            assert isinstance(record[0], str)
            assert record[1] in (None, 1, 2, 3, 4, 5)
            found["review"] += 1
    assert found["records"] == found["review"] + found["malformed"]
    return found


def parsed(record):
    try:
        return parse_review(record, Fields())
    except Malformed as error:
        return error


def test_lines(tmp_path):
    lines = [b"{}", *json_lines(random.Random(11)), *ABSURD]  # "{}": a file that begins with a bracket is an array
    path = tmp_path / "x.jsonl"
    path.write_bytes(b"\n".join(lines))
    found = outcomes(path)
    assert found["records"] == len(lines) == COUNT + 1 + len(ABSURD)
    assert min(found["review"], found["malformed"]) > COUNT / 10
    account(tmp_path, path, len(lines))


def test_arrays(tmp_path):
    """How many elements a broken array has is a matter of opinion (a stray bracket ends it, and what follows is no JSON
    for its commas); that none is lost in a run is not."""
    path = tmp_path / "x.json"
    path.write_bytes(b"[" + b",\n".join(json_lines(random.Random(12))) + b"]")
    found = outcomes(path)
    assert found["review"] > 100
    account(tmp_path, path, found["records"])


def test_tables(tmp_path):
    path = tmp_path / "x.csv"
    data = b"number,text,rating\n" + b"\n".join(csv_lines(random.Random(13)))
    path.write_bytes(data + b"\n" + b"\n".join(ABSURD))
    found = outcomes(path)
    assert min(found["review"], found["malformed"]) > COUNT / 20
    account(tmp_path, path, found["records"])


def account(folder: Path, path: Path, lines: int) -> None:
    """A whole run: the same number of lines, all accounted for, as many in the quarantine as counted."""
    assert main([str(path), "--out", str(folder / "out"), "-r", "inline", "--max-malformed", "100"]) == 0
    counts = read_manifest(folder / "out")["counts"]
    assert counts["lines"] == lines == sum(counts[field] for field in COUNT_FIELDS[1:])
    assert counts["malformed"] == sum(1 for _ in (folder / "out" / "quarantine.jsonl").open())
    assert counts["kept"] > 0
