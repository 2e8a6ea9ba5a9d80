"""The compiled tokenizer, counter and encoder do what their Python twins do, on every text."""

import gzip
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from native import text as pipeline
from native import tokenizer, vocabulary
from native import words as twin
from native.words import to_ascii
from tests.text_fuzz import PIECES, Fuzz

ROOT = Path(__file__).parents[2]
DATA = ROOT.parent / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"the real reviews are not here: {DATA}")

ANY = st.text(st.characters(codec=None), max_size=100)  # surrogates too
MARKUP = st.lists(st.sampled_from(PIECES) | st.text(max_size=5), max_size=30).map("".join)
LONG = st.lists(
    st.tuples(st.sampled_from(["a", "é", "'", "’", "很", "👍", "\u0301", "&amp;", " "]), st.integers(1, 90))
)
TEXTS = ANY | MARKUP | LONG.map(lambda runs: "".join(piece * count for piece, count in runs))
WORDS = st.sampled_from(["a", "the", "not", "isn't", "sevenxx", "eightxxx", "nine-long", "sixteen letters!", "é", "👍"])
NORMAL = st.lists(WORDS | st.text("ab", min_size=1, max_size=20), max_size=30).map(
    lambda words: to_ascii(twin.normalize(" ".join(words)))
)


@given(TEXTS)
@settings(max_examples=1000, deadline=None)
@example("\u212aELVIN don\u1feft \u1fef")
@example("ΑΣ ΑΣ<b>Σ</b> ΑΣ'Σ")
@example("<\u0338b>x</b>\u0338 &lt;b&gt;y &#60;b&#62;z &#xD800; &#0; &#1114112;")
@example("y" * 39 + "'z" + "y" * 38 + "’👍")
def test_words_are_the_twins(text):
    assert tokenizer.normalize(text) == twin.normalize(text)
    assert tokenizer.normalize(tokenizer.normalize(text)) == tokenizer.normalize(text)


@pytest.mark.parametrize("between", [" ", "", "a", "'", "a'", "\u0301"])
def test_every_code_point_in_company(between):
    text = between.join(map(chr, range(sys.maxunicode + 1)))
    assert tokenizer.normalize(text) == twin.normalize(text)


def test_every_code_point_alone():
    for start in range(0, sys.maxunicode, 97):  # all of them would take ten seconds
        assert tokenizer.normalize(chr(start)) == twin.normalize(chr(start))


def test_narrow_and_wide_strings_are_read_alike():
    for tail in ("", "\xff", "\u3042", "\U0001f600", "\U00020000"):
        text = f"It's <br/> a\x00b 'Test' É{tail}"
        assert tokenizer.normalize(text) == twin.normalize(text)
    with pytest.raises(TypeError):
        tokenizer.normalize(b"bytes")
    with pytest.raises(TypeError):
        tokenizer.normalize(None)


@given(st.lists(st.tuples(st.sampled_from(["add", "add", "length", "clear"]), NORMAL), max_size=20), st.lists(WORDS))
@settings(deadline=None)
def test_counts_are_the_twins(steps, stop_words):
    stop_words = [to_ascii(word) for word in stop_words]
    ours, its = vocabulary.WordCounter(stop_words), twin.WordCounter(stop_words)
    for step, text in steps:
        arguments = [] if step == "clear" else [text]
        assert getattr(ours, step)(*arguments) == getattr(its, step)(*arguments)
        assert len(ours) == len(its)
        assert list(ours.items()) == list(its.items())


def test_a_counter_grows_and_can_be_emptied():
    ours, its = vocabulary.WordCounter([b"the"]), twin.WordCounter([b"the"])
    for turn in range(3):
        for start in range(0, 100_000, 100):
            text = " ".join(
                f"{'x' * (number % 50)}{number >> turn} the" for number in range(start, start + 100)
            ).encode()
            assert ours.add(text) == its.add(text) == 100
        assert len(ours) > 20_000
        assert list(ours.items()) == list(its.items())
        if turn == 1:
            ours.clear(), its.clear()
            assert len(ours) == 0
    assert ours.length(b"the only the") == 1


def test_a_counter_may_count_on_while_its_items_are_read():
    ours = vocabulary.WordCounter()
    ours.add(b"a b a")
    items = ours.items()
    assert next(items) == (b"a", 2)
    ours.add(" ".join(map(str, range(10_000))).encode())
    assert len(list(items)) == 10_001


@given(
    st.lists(WORDS | st.sampled_from(["", "a b", " a", "\\xe9", "n" * 300]), max_size=12),
    st.lists(WORDS, max_size=3), st.integers(1, 20), st.sampled_from([2, 4]), st.lists(NORMAL, max_size=5),
)  # fmt: skip
@settings(deadline=None)
def test_ids_are_the_twins(words, stop_words, max_length, item_bytes, texts):
    arguments = (list(map(to_ascii, words)), list(map(to_ascii, stop_words)), max_length, item_bytes)
    ours, its = vocabulary.WordEncoder(*arguments), twin.WordEncoder(*arguments)
    for text in texts:
        assert ours.encode(text) == its.encode(text)


def test_ids_of_a_large_vocabulary():
    words = [b"w%d" % number for number in range(200_000)]
    ours, its = vocabulary.WordEncoder(words, [b"w7"], 9999, 4), twin.WordEncoder(words, [b"w7"], 9999, 4)
    for start in range(0, 220_000, 9_000):
        text = b" ".join(b"w%d" % number for number in range(start, start + 9_500))
        assert ours.encode(text) == its.encode(text)


@pytest.mark.parametrize("piece", ["x", "don't ", "é", "<", "&", "<a ", "<a b=", "'", "👍"])
def test_a_review_of_three_megabytes(piece):
    text = piece * (3_000_000 // len(piece))
    assert tokenizer.normalize(text) == twin.normalize(text)


@pytest.mark.parametrize("seed", [1, 2])
def test_a_short_round_of_the_fuzz(seed, tmp_path):
    count = int(os.environ.get("TEXT_FUZZ", "5000"))  # all of it: TEXT_FUZZ=100000
    outcomes = Fuzz(seed, tmp_path).run(count)
    assert sum(outcomes.values()) == count
    # Not everything may be refused: then wrong words could not be seen.
    assert outcomes["review"] > 0.4 * count
    assert all(outcomes[kind] > 0 for kind in ("malformed", "without_rating", "empty"))


def test_a_fuzzed_line_is_the_same_whenever_it_is_made(tmp_path):
    fuzz, again = Fuzz(1, tmp_path), Fuzz(1, tmp_path)
    assert [fuzz.line(number) for number in range(300)] == [again.line(number) for number in range(299, -1, -1)][::-1]
    assert fuzz.line(5) != Fuzz(2, tmp_path).line(5)


def test_the_fuzz_notices_a_difference(tmp_path, monkeypatch):
    monkeypatch.setattr("tests.text_fuzz.compiled_normalize", lambda text: twin.normalize(text.replace("\u212a", "")))
    with pytest.raises(AssertionError, match="case"):
        Fuzz(1, tmp_path).run(5000)


def real_texts():
    """The text of every line of the real data, the metadata's lines as they are."""
    for path in sorted(DATA.glob("*.json*")):
        with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as stream:
            lines = json.load(stream) if "array" in path.name else stream
            for line in lines:
                if path.name.startswith("musical_instruments_metadata"):
                    yield line
                    continue
                review = line if isinstance(line, dict) else json.loads(line)
                yield review.get("reviewText") or review.get("text") or ""


@needs_data
def test_words_counts_and_ids_of_all_real_reviews():
    ours, its = vocabulary.WordCounter([b"the"]), twin.WordCounter([b"the"])
    texts = []
    for text in real_texts():
        normal = twin.normalize(text)
        assert tokenizer.normalize(text) == normal
        texts.append(to_ascii(normal))
        assert ours.add(texts[-1]) == its.add(texts[-1])
    assert len(texts) > 120_000
    counts = Counter(dict(ours.items()))
    assert counts == Counter(dict(its.items()))
    arguments = ([word for word, _ in counts.most_common(10_000)], [b"not"], 256, 2)
    encoder, slow = vocabulary.WordEncoder(*arguments), twin.WordEncoder(*arguments)
    assert all(encoder.encode(text) == slow.encode(text) for text in texts)


WITHOUT = """
import sys
sys.modules["native.tokenizer"] = None  # importing it fails, as where it is not compiled
from mr.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("stop_words", ["none", "english"])
def test_without_the_compiled_modules_the_dataset_is_the_same(stop_words, tmp_path):
    fuzz = Fuzz(3, tmp_path)
    reviews = ({"reviewText": fuzz.text(number), "overall": 1 + number % 5} for number in range(2000))
    (tmp_path / "in.jsonl").write_text("".join(f"{json.dumps(review)}\n" for review in reviews))
    found = []
    for name, program in (("with", "from mr.cli import main; import sys; sys.exit(main(sys.argv[1:]))"),
                          ("without", WITHOUT)):  # fmt: skip
        command = [sys.executable, "-c", program, str(tmp_path / "in.jsonl"), "--out", str(tmp_path / name)]
        command += ["--cores", "2", "--stop-words", stop_words]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stderr.count("RuntimeWarning") == (name == "without"), done.stderr
        files = sorted(path for path in (tmp_path / name).rglob("*") if path.is_file())
        found.append({str(path.relative_to(tmp_path / name)): path.read_bytes() for path in files})
    assert found[0] == found[1]
    assert len(found[0]) > 4


def test_the_compiled_modules_are_the_ones_in_use():
    assert pipeline.normalize is tokenizer.normalize
    assert pipeline.WordCounter is vocabulary.WordCounter
