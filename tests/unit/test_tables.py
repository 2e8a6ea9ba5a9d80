"""CSV: every record is handed out once, whatever is in its cells, and a stray quote costs one line."""

import csv
import gzip
import io
import json
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mr import reading, tables
from mr.cli import main
from mr.errors import UsageError
from mr.ingest import ingest
from mr.options import parse_columns
from mr.pieces import whole_files
from mr.reading import read_records
from mr.review import Fields, Malformed, parse_review
from native.format import read_manifest

DATA = Path(__file__).parents[3] / "shared" / "data"
# What the csv module writes it also reads, but for carriage returns, which it writes without quotes.
CELLS = st.text(st.characters(exclude_characters="\r", exclude_categories=["Cs"]), max_size=12)


def table(rows, header=("text", "rating"), **options):
    stream = io.StringIO()
    csv.writer(stream, **options).writerows([header, *rows])
    return stream.getvalue().encode()


def read(path, data, fields=None):
    """(line, text and stars, or the reason) of each record."""
    path.write_bytes(data)
    return [(line, str(found) if isinstance(found, Malformed) else parse_review(found, Fields()) if found else None)
            for _, line, found in read_records(path, fields or Fields())]  # fmt: skip


def run(out, *arguments):
    assert main([*map(str, arguments), "--out", str(out), "-r", "inline"]) == 0
    return read_manifest(out)


@given(st.lists(st.tuples(CELLS, CELLS, st.integers(0, 6)), max_size=8), st.sampled_from(["\n", "\r\n"]),
       st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]), st.booleans())  # fmt: skip
@settings(max_examples=150, deadline=None)
def test_what_was_written_is_read(tmp_path_factory, rows, line_end, quoting, marked):
    data = table(rows, ("title", "text", "rating"), lineterminator=line_end, quoting=quoting)
    path = tmp_path_factory.getbasetemp() / "x.csv"
    found = [record for _, record in read(path, b"\xef\xbb\xbf" * marked + data)]
    assert found == [(text, stars if 1 <= stars <= 5 else None) for _, text, stars in rows]


NEVER_CLOSED, FEWER, MORE = "a quote in CSV that is never closed", "fewer fields", "more fields"


@pytest.mark.parametrize(("data", "found"), [
    ("", []),
    ("a,5", [(2, ("a", 5))]),
    ('"a, ""b""\nc\n\nd",5\n\ne,4\n', [(2, ("a, \"b\"\nc\n\nd", 5)), (6, None), (7, ("e", 4))]),
    ("a\nb,c,5\nd,3\n", [(2, FEWER), (3, MORE), (4, ("d", 3))]),
    ('"a\nb",c,5\nd,3\n', [(2, MORE), (4, ("d", 3))]),
    ('a,5\n"b,4\nc,3\nd,2', [(2, ("a", 5)), (3, NEVER_CLOSED), (4, ("c", 3)), (5, ("d", 2))]),
    ('a,5\n"b,4', [(2, ("a", 5)), (3, NEVER_CLOSED)]),
    ('5" wide,5\n"a"b,4\n', [(2, ('5" wide', 5)), (3, ("ab", 4))]),
    ("a\rb,5\nc,4", [(2, "carriage return"), (3, ("c", 4))]),
    ("a\0b,5\n\0\n", [(2, ("a\0b", 5)), (3, FEWER)]),
    (",5\na,\n ,3", [(2, ("", 5)), (3, ("a", None)), (4, (" ", 3))]),
    ('"[1]",5\n"{}",4', [(2, ("[1]", 5)), (3, ("{}", 4))]),
])  # fmt: skip
def test_dirt(tmp_path, data, found):
    records = read(tmp_path / "x.csv", b"text,rating\n" + data.encode())
    assert [line for line, _ in records] == [line for line, _ in found]
    for (_, record), (_, expected) in zip(records, found, strict=True):
        assert expected in record if isinstance(expected, str) else record == expected


def test_bytes_that_are_no_text_stay(tmp_path):
    records = read(tmp_path / "x.csv", b"text,rating\nbad \xff bytes,5\n\xed\xa0\x80,4\n")
    assert records == [(2, ("bad \ufffd bytes", 5)), (3, ("\ufffd\ufffd\ufffd", 4))]


def test_absurd_sizes_cost_one_line(tmp_path, monkeypatch):
    for module in (reading, tables):
        monkeypatch.setattr(module, "MAX_RECORD_BYTES", 100)
    monkeypatch.setattr(reading, "BLOCK_BYTES", 16)
    data = b"text,rating\na,5\n" + b"x" * 500 + b',4\n"b\n' + b"c,3\n" * 50 + b'd",2\n"' + b"y" * 500 + b'",1\ne,1\n'
    records = read(tmp_path / "x.csv", data)
    assert [record for _, record in records[:2]] == [("a", 5), "longer than 0 MiB"]
    assert records[2][1] == NEVER_CLOSED
    assert [record for _, record in records[3:53]] == [("c", 3)] * 50
    assert [record for _, record in records[53:]] == [('d"', 2), "longer than 0 MiB", ("e", 1)]
    assert [line for line, _ in records] == list(range(2, 58))


def test_stray_quotes_in_every_line_take_no_longer(tmp_path):
    start = time.monotonic()
    assert len(read(tmp_path / "x.csv", b"text,rating\n" + b'x","\n' * 50_000)) == 50_000
    assert time.monotonic() - start < 30  # quadratic it would take hours


@pytest.mark.parametrize(("data", "told"), [
    (b"a;b\n1;2\n", r"no column reviewText or text in the CSV header \(a;b\).*--columns text"),
    (b"text,stars\n", "no column overall or rating"),
    (b'"text,rating\na,5\n', "no CSV header"),
    (b"text,rating\ra,5\r", "no CSV header"),
])  # fmt: skip
def test_headers_that_do_not_do(tmp_path, data, told):
    with pytest.raises(UsageError, match=told) as error:
        read(tmp_path / "x.csv", data)
    assert str(tmp_path / "x.csv") in str(error.value)


def test_a_bad_header_is_told_before_anything_is_read(tmp_path, capfd):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "a", "rating": 5}\n' * 100)
    (tmp_path / "b.csv").write_bytes(b"x,y\n")
    shards = tmp_path / "shards"
    shards.mkdir()
    with pytest.raises(UsageError, match=r"b\.csv"):
        ingest(whole_files([tmp_path / "a.jsonl", tmp_path / "b.csv"]), shards, Fields())
    assert not list(shards.iterdir())


@pytest.mark.parametrize(("text", "fields"), [
    ("text=review,rating=stars", Fields(("review",), ("stars",))),
    ("rating=reviews.rating", Fields(rating=("reviews.rating",))),
    ("text=a, b,rating=c=d", Fields(("a, b",), ("c=d",))),
])  # fmt: skip
def test_columns(text, fields):
    assert parse_columns(text) == fields


def test_the_same_reviews_in_any_form_are_one_dataset(tmp_path):
    """JSON lines, CSV and gzipped CSV, under usual and other names: equal bytes of every part."""
    dirt = '"quoted"\nand on, isn\'t it &amp; caf\u00e9'
    reviews = [(f"number {number}, {dirt}", 1 + number % 5) for number in range(300)]
    names = {"usual": ("text", "rating"), "other": ("Review, in words", "star=rating")}
    for kind, (text, rating) in names.items():
        lines = [json.dumps({text: words, rating: stars}) for words, stars in reviews]
        (tmp_path / f"{kind}.jsonl").write_text("\n".join(lines))
        data = table([(number, *review) for number, review in enumerate(reviews)], ("id", text, rating))
        (tmp_path / f"{kind}.csv").write_bytes(b"\xef\xbb\xbf" + data)
        (tmp_path / f"{kind}.csv.gz").write_bytes(gzip.compress(data))
    other = ["--columns", "text={},rating={}".format(*names["other"])]
    digests = set()
    for kind, more in (("usual", []), ("other", other)):
        for end in ("jsonl", "csv", "csv.gz"):
            manifest = run(tmp_path / f"{kind}-{end}", tmp_path / f"{kind}.{end}", *more)
            assert manifest["counts"]["kept"] == manifest["counts"]["lines"] == 300
            digests.add(manifest["digest"])
    assert len(digests) == 1


def test_every_record_is_accounted_for(tmp_path):
    rows = [*((f"number {number}", 1 + number % 5) for number in range(90)), ("number 3", 1), ("", 5), ("...", 5),
            ("no rating", ""), ("bad rating", "five"), ("too few",), ("too", "many", 5), ("new\nline", 2)]  # fmt: skip
    data = table(rows) + b"\n"
    (tmp_path / "x.csv").write_bytes(data)
    manifest = run(tmp_path / "out", tmp_path / "x.csv", "--max-malformed", 3)
    assert manifest["counts"]["lines"] == sum(1 for _ in csv.reader(io.StringIO(data.decode(), newline=""))) - 1 == 99
    assert manifest["counts"] == {
        "lines": 99, "kept": 91, "duplicates": 1, "empty": 3, "malformed": 2, "without_rating": 2}  # fmt: skip
    quarantine = [json.loads(line) for line in (tmp_path / "out" / "quarantine.jsonl").read_text().splitlines()]
    assert [(entry["line"], entry["start"]) for entry in quarantine] == [(97, "too few"), (98, "too,many,5")]
    assert manifest["statistics"]["malformed_reasons"] == {
        "fewer fields than the CSV header": 1, "more fields than the CSV header": 1}  # fmt: skip


@pytest.mark.skipif(not DATA.is_dir(), reason=f"the real reviews are not here: {DATA}")
def test_real_reviews_are_the_same_dataset_as_csv(tmp_path):
    path = DATA / "electronics_samples.dev.json.gz"
    reviews = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
    header = ("asin", "overall", "summary", "reviewText")
    (tmp_path / "x.csv").write_bytes(table([[found.get(name) for name in header] for found in reviews], header))
    as_json, as_csv = run(tmp_path / "json", path), run(tmp_path / "csv", tmp_path / "x.csv")
    assert as_csv["counts"] == as_json["counts"]
    assert as_csv["digest"] == as_json["digest"]
