"""Lines, arrays and dirt: every record is handed out once, with its line number."""

import gzip
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mr import reading as module
from mr.arrays import ArrayReader
from mr.errors import UsageError
from mr.ingest import ingest
from mr.pieces import whole_files
from mr.reading import read_records
from mr.review import Fields, Malformed, parse_review
from mr.shards import decode_record, encode_record

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8)  # fmt: skip


def blocks(data, size):
    return iter([data[at : at + size] for at in range(0, len(data), size)])


def elements(data, size=1 << 20):
    return list(ArrayReader(blocks(data, size)))


def records(tmp_path, data, name="x.json"):
    path = tmp_path / name
    path.write_bytes(data)
    return [(line, record) for _, line, record in read_records(path, Fields())]


@given(st.lists(JSON, max_size=6), st.sampled_from([None, 0, 2]), st.booleans(), st.integers(1, 40))
@settings(max_examples=60, deadline=None)
def test_a_sound_array_comes_apart_as_it_was_put_together(values, indent, ascii_only, size):
    text = json.dumps(values, indent=indent, ensure_ascii=ascii_only)
    found = elements(text.encode("utf-8", "surrogatepass"), size)
    assert [json.loads(record.decode("utf-8", "surrogatepass")) for _, record in found] == values
    if indent is None:
        assert {line for line, _ in found} <= {1}


def test_lines_of_elements():
    values = [{"a": 1, "b": [1, 2]}, {"c": "x"}]
    text = json.dumps(values, indent=1)
    starts = [number for number, line in enumerate(text.split("\n"), 1) if line == " {"]
    assert [line for line, _ in elements(text.encode())] == starts


@pytest.mark.parametrize("size", [1, 7, 1 << 20])
@pytest.mark.parametrize(("data", "found"), [
    ('[{"a":1},{"b":"x 15" tv","c":2},{"d":3}]', ['{"a":1}', '{"b":"x 15" tv","c":2}', '{"d":3}']),
    ('[\n{"a":1},\n{"b": \n{"c":2},\n{"d":3}\n]\n', ['{"a":1}', '{"b":  {"c":2},', '{"d":3}']),
    ("[{'a': \"it's\"}, {'b': 2}, {\"c\": 3}]", ["{'a': \"it's\"}", "{'b': 2}", '{"c": 3}']),
    ('[{"a":1} {"b":2}\n{"c":3}]', ['{"a":1}', '{"b":2}', '{"c":3}']),
    ('[{"a":1}, nonsense, {"b":2}]', ['{"a":1}', "nonsense", '{"b":2}']),
    ('[{"a":"x\ny"},\n{"b":2}]', ['{"a":"x y"}', '{"b":2}']),
    ('[1, "x", null, ]', ["1", '"x"', "null"]),
    ('[{"a":1},{"b"', ['{"a":1}', '{"b"']),
    ('[{"a":1}', ['{"a":1}']),
    ("[]", []),
    ("[", []),
    ('[{"l":[\n {"q":2,}\n]},\n{"b":2}\n]', ['{"l":[  {"q":2,} ]}', '{"b":2}']),
])  # fmt: skip
def test_a_broken_element_costs_only_itself(data, found, size):
    assert [record.decode() for _, record in elements(data.encode(), size)] == found


def test_deep_nesting_ends():
    assert len(elements(b"[" * 100_000)) == 1
    with pytest.raises(Malformed, match="deep"):
        parse_review(b"[" * 100_000, Fields())


def test_what_follows_an_array_is_read_as_lines(tmp_path):
    assert records(tmp_path, b'\n [{"a":1}]\n\n{"b":2}\nx\n\n') == [(2, b'{"a":1}'), (4, b'{"b":2}'), (5, b"x")]


@pytest.mark.parametrize(("data", "found"), [
    (b"", []),
    (b"a\nb", [(1, b"a"), (2, b"b")]),
    (b"a\nb\n", [(1, b"a"), (2, b"b")]),
    (b"a\r\n\r\nb\r\n", [(1, b"a"), (2, b""), (3, b"b")]),
    (b"\xef\xbb\xbfa\n\xef\xbb\xbfb", [(1, b"a"), (2, b"\xef\xbb\xbfb")]),
    ("a\u2028b\u0085c\x0b\x0c\x1cd\n".encode(), [(1, "a\u2028b\u0085c\x0b\x0c\x1cd".encode())]),
    (b"some text \x00 and \xff\xfe more\rof it\nb", [(1, b"some text \x00 and \xff\xfe more\rof it"), (2, b"b")]),
])  # fmt: skip
@pytest.mark.parametrize("block", [3, 1 << 20])
def test_only_newlines_count(tmp_path, monkeypatch, data, found, block):
    monkeypatch.setattr(module, "BLOCK_BYTES", block)
    monkeypatch.setattr(module, "_is_binary", lambda _: False)  # it judges a whole block
    assert records(tmp_path, data) == found


def test_absurdly_long_lines_are_told(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MAX_RECORD_BYTES", 100)
    monkeypatch.setattr(module, "BLOCK_BYTES", 16)
    found = records(tmp_path, b"a\n" + b"x" * 500 + b"\nb\n" + b"y" * 500)
    assert [line for line, _ in found] == [1, 2, 3, 4]
    assert (found[0][1], found[2][1]) == (b"a", b"b")
    for (_, record), character in zip(found[1::2], "xy", strict=True):
        assert isinstance(record, Malformed)
        assert "longer than" in record.kind
        assert record.start.startswith(character * 100)


@given(st.binary(max_size=50).filter(lambda record: b"\n" not in record), st.integers(0, 9), st.integers(1))
def test_shard_lines_round_trip_as_safe_text(record, file, line):
    encoded = encode_record(file, line, record)
    assert decode_record(encoded.removesuffix(b"\n")) == (file, line, record)
    assert encoded.count(b"\n") == 1
    assert b"\r" not in encoded
    assert encoded.decode().encode() == encoded


@given(st.text(max_size=9), st.text(max_size=9), st.text(max_size=9), st.integers(0, 9), st.integers(1))
def test_so_do_reasons(kind, detail, start, file, line):
    encoded = encode_record(file, line, Malformed(kind, detail, start))
    *place, found = decode_record(encoded.removesuffix(b"\n"))
    assert place == [file, line]
    assert (found.kind, found.detail, found.start) == (kind, detail, start)
    assert encoded.count(b"\n") == 1
    assert b"\r" not in encoded
    assert encoded.decode().encode() == encoded


def test_shards(tmp_path):
    paths = [tmp_path / "a.json", tmp_path / "b.jsonl.gz", tmp_path / "c.json"]
    paths[0].write_bytes(b"1\n2\n3\n")
    paths[1].write_bytes(gzip.compress(b"[4,\n5]") + gzip.compress(b"\n6"))
    paths[2].write_bytes(b"")
    folder = tmp_path / "shards"
    folder.mkdir()
    told = []
    tell = lambda *progress: told.append(progress)  # noqa: E731
    made = ingest(whole_files(paths), folder, Fields(), progress=tell, shard_bytes=10)
    assert told[-1] == (sum(path.stat().st_size for path in paths), 6, made.bytes)
    assert made.lines == [3, 3, 0]
    assert len(made.shards) > 1
    assert made.bytes == sum(path.stat().st_size for path in made.shards)
    lines = b"".join(path.read_bytes() for path in made.shards).splitlines()
    assert [decode_record(line) for line in lines] == [
        (0, 1, b"1"), (0, 2, b"2"), (0, 3, b"3"), (1, 1, b"4"), (1, 2, b"5"), (1, 3, b"6")]  # fmt: skip


GOOD = gzip.compress(bytes(range(32, 127)) * 5000)


@pytest.mark.parametrize(("name", "data", "told"), [
    ("x.json.gz", GOOD[:-20], "truncated"),
    ("x.json.gz", GOOD[:100] + b"????" + GOOD[104:], "damaged"),
    ("x.json.gz", b'{"a": 1}\n', "not gzip"),
    ("x.json", GOOD, "rename"),
    ("x.json", "text in UTF-16\n".encode("utf-16"), "not a text file"),
    ("x.json", bytes(range(256)) * 50, "not a text file"),
])  # fmt: skip
def test_unusable_files_are_named(tmp_path, name, data, told):
    with pytest.raises(UsageError, match=told) as error:
        records(tmp_path, data, name)
    assert str(tmp_path / name) in str(error.value)


@pytest.mark.parametrize(("record", "expected"), [
    (b'{"reviewText": "a", "overall": 5.0}', ("a", 5)),
    (b'{"text": "a", "rating": 1}', ("a", 1)),
    (b'{"text": "a", "rating": "4.0"}', ("a", 4)),
    (b'{"text": "a", "rating": " 3 "}', ("a", 3)),
    (b'{"text": "a", "reviewText": null, "overall": null, "rating": 2}', ("a", 2)),
    (b'{"text": "a \xff b", "rating": 2}', ("a \ufffd b", 2)),
    (b'{"rating": ' + b"9" * 4000 + b"}", ("", None)),
    (b'{"overall": 5}', ("", 5)),
    (b'{"text": null, "rating": 5}', ("", 5)),
    *[(b'{"text": "a", "rating": %s}' % rating, ("a", None)) for rating in
      (b"null", b"0", b"6", b"4.5", b"true", b"NaN", b"1e999",
       b'"five"', b'"4.5"', b'""', b"[5]", b'"1e0"', b'"\\u0665"')],
    (b'{"text": "a"}', ("a", None)),
])  # fmt: skip
def test_reviews(record, expected):
    assert parse_review(record, Fields()) == expected


@pytest.mark.parametrize(("record", "reason"), [
    (b'{"text": "a", "rating": 5', "not JSON"),
    (b'{"text": "a", "rating": 5} x', "not JSON"),
    (b"[1]", "a list"),
    (b"5", "a number"),
    (b"null", "null"),
    (b'{"text": 5, "rating": 5}', "text is a number"),
    (b'{"reviewText": ["a"], "rating": 5}', "text is a list.*reviewText"),
    (b'{"rating": ' + b"9" * 5000 + b"}", "digits"),
    (b'{"text": "a\tb"}', "not JSON"),
])  # fmt: skip
def test_malformed_records_say_why(record, reason):
    with pytest.raises(Malformed, match=reason):
        parse_review(record, Fields())
