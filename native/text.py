"""The text pipeline: raw review text in, words, a digest, a split and token ids out.

Preprocessing and prediction share it, so a text becomes the same ids in both. It is plain Python and depends on
nothing but the standard library.

    text --tokenize--> words --text_digest--> digest --split_of--> "train" | "validation" | "test"
                         |--Encoder--> ids (0 pads, 1 is an unknown word, 2.. the vocabulary's lines)

A word is a run of letters and digits of any script, with the apostrophes inside it ("don't", "rock'n'roll"); an emoji
is a word too. Everything else separates words, so a space lost after a full stop ("expected.As") costs nothing, and no
word is dropped: "not good" stays "not good". tokenize(" ".join(words)) == words: normalised text is a fixed point.
"""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import islice
from typing import Any

MAX_WORD_LENGTH = 40
"""characters; what is longer is a link, a typed-on key or a run without spaces, and is cut"""
SPLITS = ("train", "validation", "test")
UNKNOWN_ID = 1
FIRST_WORD_ID = 2

# A tag is a name alone or with attributes; "<not good>" and "I <3 it" are a customer's words, not markup.
_TAG = re.compile(r"</?[A-Za-z][A-Za-z0-9]*(?:\s+[A-Za-z-]+\s*=[^<>]*|\s*/?)>")
# Only entities that end in a semicolon: html.unescape alone would turn "&not good" into "\u00ac good".
_ENTITY = re.compile(r"&(?:#[0-9]{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});")

# ASCII text, nine reviews in ten, needs no regular expression: translate, mend the apostrophes, split.
_ASCII_WORDS = "".join(
    "'" if character in "'`" else character.lower() if character.isalnum() else " "
    for character in map(chr, range(128))
)
_OUTER_APOSTROPHE = re.compile(r"'(?:(?<![a-z0-9]')|(?![a-z0-9]))")

# Vowel signs and other marks that belong to a word but are no letters to Python, written as ranges so that the
# result does not hang on the interpreter's Unicode tables.
_MARKS = (
    "\u0300-\u036f\u0483-\u0487\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u0610-\u061a\u064b-\u065f\u0670"
    "\u06d6-\u06dc\u06df-\u06e4\u06e7\u06e8\u06ea-\u06ed\u0900-\u0903\u093a-\u094f\u0951-\u0957\u0962\u0963"
    "\u0981-\u0983\u09bc-\u09cd\u0a01-\u0a4d\u0a81-\u0acd\u0b01-\u0b4d\u0b82-\u0bcd\u0c00-\u0c56\u0c81-\u0cd6"
    "\u0d00-\u0d4d\u0e31\u0e34-\u0e3a\u0e47-\u0e4e\u0eb1\u0eb4-\u0ebc\u0ec8-\u0ecd\u102b-\u103e\u17b4-\u17d3"
)
# Pictographs; skin tones (1F3FB..1F3FF) and variation selectors are left out, so that an emoji is one word.
_EMOJI = "\u2600-\u27bf\u2b50\u2b55\U0001f000-\U0001f3fa\U0001f400-\U0001faff"
# The underscore, which \w would take, is replaced before.
_WORDS = re.compile(rf"[\w{_MARKS}]+(?:'[\w{_MARKS}]+)*|[{_EMOJI}]")
_APOSTROPHES = "\u2019\u2018\u201b\u02bc\u2032\u00b4`\uff07"


def tokenize(text: str) -> list[str]:
    """Split a raw review into lower-case words.

    HTML entities are resolved twice (&amp;quot; occurs in the wild), tags separate words, curly apostrophes become
    straight ones, other texts than ASCII are composed (NFC). Words are 1 to MAX_WORD_LENGTH characters long; lone
    surrogates, control characters and punctuation separate words.
    """
    if "&" in text:
        text = _ENTITY.sub(_character, text)
        if "&" in text:
            text = _ENTITY.sub(_character, text)
    if "<" in text:
        text = _TAG.sub(" ", text)
    words = _ascii_words(text) if text.isascii() else _unicode_words(text)
    if words and max(map(len, words)) > MAX_WORD_LENGTH:
        words = [word[:MAX_WORD_LENGTH].rstrip("'") for word in words]
    return words


def _character(entity: re.Match[str]) -> str:
    return html.unescape(entity.group())


def _ascii_words(text: str) -> list[str]:
    text = text.translate(_ASCII_WORDS)
    if "'" in text:
        text = _OUTER_APOSTROPHE.sub(" ", text)
    return text.split()


def _unicode_words(text: str) -> list[str]:
    for apostrophe in _APOSTROPHES:
        text = text.replace(apostrophe, "'")
    if text.isascii():
        return _ascii_words(text)
    text = unicodedata.normalize("NFC", text.replace("_", " ").lower())
    return _WORDS.findall(text)


def text_digest(words: Iterable[str]) -> bytes:
    """16-byte digest of the normalised text: two reviews with equal digests have the same words."""
    return blake2b(" ".join(words).encode("utf-8", "surrogatepass"), digest_size=16).digest()


def split_of(digest: bytes, fractions: Mapping[str, float]) -> str:
    """The split of a text, a function of its digest alone.

    Args:
        digest: from text_digest.
        fractions: percent of the texts per split; a split that is not named gets none. They sum to 100.
    """
    point = int.from_bytes(digest[8:16], "big") / 2**64 * 100
    last, edge = SPLITS[0], 0.0
    for split in SPLITS:
        share = fractions.get(split, 0)
        if share > 0:
            edge += share
            last = split
            if point < edge:
                return split
    return last  # the sum of the shares may fall short of 100 by a rounding error


@dataclass(frozen=True, kw_only=True)
class TextSettings:
    """How words become ids; stands in dataset.json and in checkpoints.

    Raises:
        ValueError: a value of the wrong type or out of range.
    """

    max_length: int = 256
    """words of a review that are kept, from its beginning; 1..9999"""
    stop_words: tuple[str, ...] = ()
    """words that are left out before the text is cut to max_length"""

    def __post_init__(self) -> None:
        if type(self.max_length) is not int or not 1 <= self.max_length <= 9999:
            raise ValueError(f"max_length is {self.max_length!r}: give a whole number from 1 to 9999")
        if not isinstance(self.stop_words, tuple) or not all(isinstance(word, str) for word in self.stop_words):
            raise ValueError(f"stop_words is {self.stop_words!r}: give a tuple of words")

    def to_json(self) -> dict[str, Any]:
        """The settings as plain JSON values."""
        return {"max_length": self.max_length, "stop_words": list(self.stop_words)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> TextSettings:
        """The reverse of to_json.

        Raises:
            ValueError: not an object with these fields, or a bad value.
        """
        if not isinstance(value, Mapping) or set(value) != {"max_length", "stop_words"}:
            raise ValueError(f"text settings {value!r} must hold max_length and stop_words, and nothing else")
        stop_words = value["stop_words"]
        return cls(
            max_length=value["max_length"],
            stop_words=tuple(stop_words) if isinstance(stop_words, list | tuple) else stop_words,
        )


class Encoder:
    """Turns words into token ids.

    Args:
        words: the vocabulary, in the order of vocabulary.txt: words[i] has id i + 2.
        settings: stop words and length.
    """

    def __init__(self, words: Sequence[str], settings: TextSettings) -> None:
        self.settings = settings
        self._ids = {word: number for number, word in enumerate(words, FIRST_WORD_ID)}
        self._stop_words = frozenset(settings.stop_words)

    def encode(self, text: str) -> list[int]:
        """Ids of a raw text: at most max_length of them, none where the text has no words."""
        return self.encode_words(tokenize(text))

    def encode_words(self, words: Iterable[str]) -> list[int]:
        """Ids of words that tokenize returned."""
        kept = (word for word in words if word not in self._stop_words) if self._stop_words else words
        known = self._ids.get
        return [known(word, UNKNOWN_ID) for word in islice(kept, self.settings.max_length)]
