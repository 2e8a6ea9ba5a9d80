"""Python dicts in place of JSON, and records that are made to hurt."""

import ast
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mr.loose import MAX_DEPTH, MAX_LOOSE_CHARACTERS, is_loose, is_too_deep, parse_loose
from mr.review import Fields, Malformed, parse_review

ROOT = Path(__file__).parents[2]
DATA = ROOT.parent / "shared" / "data"
LITERALS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8)  # fmt: skip


@given(st.dictionaries(st.text(max_size=5), LITERALS, min_size=1))
@settings(max_examples=150, deadline=None)
def test_a_dict_reads_back(value):
    text = str(value)
    assert parse_loose(text) == value
    assert is_loose(text) == text.startswith("{'")


@pytest.mark.parametrize(("record", "expected"), [
    (b"{'reviewerID': 'A1', 'reviewText': \"it's\", 'overall': 5.0, 'helpful': [0, 1]}", ("it's", 5)),
    (b"  {'text': 'a \\u00e9 \\'b\\' \\d', 'rating': '4'}", ("a \u00e9 'b' \\d", 4)),
    (b"{'text': 'lone \\ud83d', 'rating': 4, 'more': (1, {2, 3}, None, True, -1e-5)}", ("lone \ud83d", 4)),
    (b"{'text': None, 'overall': None}", ("", None)),
    ("{'text': 'caf\u00e9 \U0001f44d', 'rating': 3}".encode(), ("caf\u00e9 \U0001f44d", 3)),
    (b"{'text': 'a \xff b', 'rating': 2}", ("a \ufffd b", 2)),
    (b"{'rating': 5j, 'text': 'a'}", ("a", None)),
])  # fmt: skip
def test_reviews(record, expected):
    assert parse_review(record, Fields()) == expected


@pytest.mark.parametrize(("record", "reason"), [
    (b"{'text': open('/etc/passwd').read(), 'rating': 5}", "cannot be read"),
    (b"{'text': __import__('os').system('touch hacked'), 'rating': 5}", "cannot be read"),
    (b"{'text': 'a' * 10 ** 9, 'rating': 5}", "cannot be read"),
    (b"{'text': [x for x in 'abc'], 'rating': 5}", "cannot be read"),
    (b"{'text': f'{1}', 'rating': 5}", "cannot be read"),
    (b"{'text': 'a', 'rating': nan}", "cannot be read"),
    (b"{'text': 'a\0b', 'rating': 5}", "cannot be read"),
    (b"{'text': 'a\rb', 'rating': 5}", "cannot be read"),
    (b"{'text': 'a', 'rating': " + b"9" * 5000 + b"}", "cannot be read"),
    (b"{'text': 'a', [1]: 5}", "cannot be read"),
    (b"{'text': 'a', 'rating': 5", "cannot be read"),
    (b"{'text': 'a', 'rating': 5} {}", "cannot be read"),
    (b"{'text', 'rating'}", "not an object but something else"),
    (b"{'text': ('a',), 'rating': 5}", "the text is a list"),
    (b"{'text': b'a', 'rating': 5}", "the text is something else"),
    (b"{'text': '" + b"a" * MAX_LOOSE_CHARACTERS + b"', 'rating': 5}", "longer than"),
    (b"{'text': " + b"-" * 200_000 + b"1}", "cannot be read"),
    (b"{'text': " + b"1+" * 100_000 + b"1}", "cannot be read"),
    (b"{'text': " + b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1) + b"}", "levels deep"),
    (b"{'text': " * 100_000, "levels deep"),
    (b'{"text": ' * 100_000, "levels deep"),
    (b'{"a": ' + b"[" * MAX_DEPTH + b"]" * MAX_DEPTH + b"}", "levels deep"),
    (b"{u'text': 'a'}", "not JSON"),
    (b"['text']", "not JSON"),
])  # fmt: skip
def test_hostile_records_are_malformed(record, reason, recwarn):
    with pytest.raises(Malformed, match=reason) as error:
        parse_review(record, Fields())
    assert len(str(error.value)) < 200
    assert not recwarn.list
    assert not Path("hacked").exists()


def test_brackets_in_text_are_no_nesting():
    smileys = ":( [sic] {" * 500
    assert not is_too_deep(json.dumps({"text": smileys}))
    assert not is_too_deep(str({"text": smileys + '"'}))
    assert parse_review(json.dumps({"text": smileys, "rating": 1}).encode(), Fields()) == (smileys, 1)
    assert parse_review(str({"text": smileys, "rating": 1}).encode(), Fields()) == (smileys, 1)
    deep = "[" * (MAX_DEPTH - 1) + "]" * (MAX_DEPTH - 1)
    assert parse_review(b'{"rating": 5, "a": %s}' % deep.encode(), Fields()) == ("", 5)


@pytest.mark.parametrize("unit", [r"'\'", r"\'", '"', "'\"", '["', "\\", "['"])
def test_looking_for_strings_is_linear(unit):
    text = "[" * (MAX_DEPTH + 1) + unit * 1_000_000
    start = time.monotonic()
    is_too_deep(text)
    assert time.monotonic() - start < 10


def test_a_big_record_is_read_and_a_hostile_one_takes_little_memory():
    text = "a word and more " * 700_000
    assert parse_review(json.dumps({"text": text, "rating": 5}).encode(), Fields()) == (text, 5)
    code = (
        "import resource\n"
        "from mr.review import *\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "for unit in (b'1,', b'1+', b'1<', b'()', b'a.', b\"{'a':\", b'1 or ', b'-', b'lambda:'):\n"
        "    try: parse_review(b\"{'a': [\" + unit * (250_000 // len(unit)) + b'1]}', Fields())\n"
        "    except Malformed: pass\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    unit = 1 if sys.platform == "darwin" else 1024
    assert int(done.stdout) * unit < 300 << 20


@pytest.mark.skipif(not DATA.is_dir(), reason=f"the real reviews are not here: {DATA}")
def test_real_metadata_is_read_and_holds_no_review():
    lines = (DATA / "musical_instruments_metadata_top100.json").read_bytes().splitlines()
    assert len(lines) == 100
    for line in lines:
        assert parse_loose(line.decode()) == ast.literal_eval(line.decode())
        assert parse_review(line, Fields()) == ("", None)
