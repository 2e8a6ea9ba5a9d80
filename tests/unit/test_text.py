"""The text pipeline: what becomes a word, and that digests, splits and ids follow from the words alone."""

import json
import re
from collections import Counter

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from native import words as twin
from native.text import SPLITS, Encoder, TextSettings, split_of, text_digest, to_ascii, tokenize

ANY_TEXT = st.text(st.characters(codec=None), max_size=200) | st.text(
    "aB'’`.<>/&;#x39 _é\u0301\u200d👍\ud83d", max_size=60
)


@pytest.mark.parametrize(("text", "words"), [
    ("Not good, isn't it? Don't buy!", ["not", "good", "isn't", "it", "don't", "buy"]),
    ("as expected.As an aside...Never", ["as", "expected", "as", "an", "aside", "never"]),
    ("&quot;great&quot; &amp;quot;amp&amp;quot; it&#39;s &amp;#39;ok&amp;#39;", ["great", "amp", "it's", "ok"]),
    ("good &not bad&nothing", ["good", "not", "bad", "nothing"]),
    ("one<br /><br/>two<BR>three<a href='x y'>four</a>", ["one", "two", "three", "four"]),
    ("I <3 it, <not good>, 1 < 2 > 0", ["i", "3", "it", "not", "good", "1", "2", "0"]),
    ("it\u2019s don\u2018t can`t won\u00b4t", ["it's", "don't", "can't", "won't"]),
    ("can`t won`t `quoted`", ["can't", "won't", "quoted"]),
    ("'tis rock'n'roll, the dogs' 'bone' it''s '", ["tis", "rock'n'roll", "the", "dogs", "bone", "it", "s"]),
    ("4 stars, 3.5mm, 100%", ["4", "stars", "3", "5mm", "100"]),
    ("Café ÜBER naïve cafe\u0301", ["café", "über", "naïve", "café"]),
    ("很好 очень хорошо हिन्दी", ["很好", "очень", "хорошо", "हिन्दी"]),
    ("good\U0001f44d\U0001f3fd\U0001f600 ❤️", ["good", "\U0001f44d", "\U0001f600", "❤"]),
    ("snake_case __x__ é_é", ["snake", "case", "x", "é", "é"]),
    ("a\x00b\x85c\u2028d\ufeffe \ud83d f", ["a", "b", "c", "d", "e", "f"]),
    ("x" * 100, ["x" * 40]),
    ("y" * 39 + "'z", ["y" * 39]),
    ("", []),
    ("<br /> ... &nbsp; !", []),
])  # fmt: skip
def test_tokenize(text, words):
    assert tokenize(text) == words


@given(ANY_TEXT)
@example("ŉ")
@example("İstanbul K")
def test_words_are_clean_and_a_fixed_point(text):
    words = tokenize(text)
    for word in words:
        assert 1 <= len(word) <= twin.MAX_WORD_LENGTH
        assert not re.search(r"[\s\\_,&<>]|^'|'$|[\ud800-\udfff]", word)
    assert tokenize(" ".join(words)) == words


@given(st.text(st.characters(max_codepoint=127), max_size=200))
def test_the_ascii_path_is_the_general_one(text):
    assert twin._ascii_words(text) == twin._WORDS.findall(text.lower().replace("_", " ").replace("`", "'"))


def test_digest_tells_texts_apart_and_survives_surrogates():
    assert text_digest(tokenize("Not GOOD!")) == text_digest(["not", "good"])
    assert text_digest(["not", "good"]) != text_digest(["notgood"])
    assert len(text_digest([])) == len(text_digest(["\ud800"])) == 16


def test_split_follows_the_shares():
    digests = [text_digest([str(number)]) for number in range(20_000)]
    found = Counter(split_of(digest, {"train": 80, "validation": 10, "test": 10}) for digest in digests)
    assert found["train"] == pytest.approx(16_000, abs=300)
    assert found["test"] == pytest.approx(2_000, abs=200)
    assert {split_of(digest, {"test": 100}) for digest in digests} == {"test"}


@given(st.binary(min_size=16, max_size=16), st.lists(st.integers(0, 1000), min_size=3, max_size=3).filter(any))
@example(b"\xff" * 16, [333, 333, 334])
@example(b"\xff" * 16, [1, 0, 0])
def test_every_digest_has_a_split_with_a_share(digest, weights):
    shares = {split: weight / sum(weights) * 100 for split, weight in zip(SPLITS, weights, strict=True)}
    assert shares[split_of(digest, shares)] > 0


def test_settings_round_trip_and_refuse_nonsense():
    settings = TextSettings(max_length=7, stop_words=("a", "the"))
    assert TextSettings.from_json(json.loads(json.dumps(settings.to_json()))) == settings
    for wrong in ({}, [], {"max_length": 0, "stop_words": []}, {"max_length": True, "stop_words": []},
                  {"max_length": 5, "stop_words": "a"}, {"max_length": 5, "stop_words": [1]},
                  {"max_length": 5, "stop_words": [], "more": 1}):  # fmt: skip
        with pytest.raises(ValueError, match=r"\w"):
            TextSettings.from_json(wrong)


def test_encoder_numbers_words_from_two_and_truncates_after_stop_words():
    encoder = Encoder(["good", "not"], TextSettings(max_length=3, stop_words=("the",)))
    assert encoder.encode("The thing is not good") == [1, 1, 3]
    assert encoder.encode("the the not good") == [3, 2]
    assert encoder.encode("") == []


def test_encoded_bytes_are_little_endian_and_ids_must_fit():
    words = [f"w{number}" for number in range((1 << 16) - 2)]
    assert Encoder(words, TextSettings(), item_bytes=2).encode_ascii(b"w0 w65533 new") == b"\2\0\xff\xff\1\0"
    assert Encoder([*words, "more"], TextSettings()).encode_ascii(b"w0 more") == b"\2\0\0\0\0\0\1\0"
    assert Encoder([*words, "more"], TextSettings()).encode("w0 More!") == [2, 1 << 16]
    with pytest.raises(ValueError, match="65535 words"):
        Encoder([*words, "more"], TextSettings(), item_bytes=2)


@given(ANY_TEXT, ANY_TEXT)
def test_ascii_form_is_ascii_reversible_and_one_to_one(text, other):
    assert to_ascii(text).isascii()
    assert to_ascii(text).decode("unicode_escape") == text
    assert (to_ascii(text) == to_ascii(other)) == (text == other)
