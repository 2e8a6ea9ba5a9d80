"""The text pipeline: raw review text in, words, a digest, a split and token ids out.

Preprocessing and prediction share it, so a text becomes the same ids in both. Where native/tokenizer.pyx and
native/vocabulary.pyx are not compiled, native/words.py does the same in plain Python; neither needs any package.

    raw text --normalize--> words and blanks --normalized_digest--> digest --split_of--> "train" | "validation" | "test"
                               |--to_ascii--> as in mr's records --WordCounter--> counts
                                                 |--Encoder--> ids (0 pads, 1 is an unknown word, 2.. are known ones)

A word is a run of letters and digits of any script, with the apostrophes inside it ("don't", "rock'n'roll"); an emoji
is a word too. Everything else separates words, so a space lost after a full stop ("expected.As") costs nothing, and no
word is dropped: "not good" stays "not good". Normalised text is a fixed point of normalize.
"""

from __future__ import annotations

import struct
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from native.words import FIRST_WORD_ID, UNKNOWN_ID, to_ascii

try:
    from native.tokenizer import normalize
    from native.vocabulary import WordCounter, WordEncoder
except ImportError as error:
    from native.words import WordCounter, WordEncoder, normalize

    warnings.warn(
        f"texts are read by plain Python, several times slower, with the same result ({error}); make setup compiles it",
        RuntimeWarning,
        stacklevel=2,
    )

__all__ = [
    "FIRST_WORD_ID",
    "SPLITS",
    "UNKNOWN_ID",
    "Encoder",
    "TextSettings",
    "WordCounter",
    "normalize",
    "normalized_digest",
    "split_of",
    "text_digest",
    "to_ascii",
    "tokenize",
]

SPLITS = ("train", "validation", "test")


def tokenize(text: str) -> list[str]:
    """Split a raw review into lower-case words.

    HTML entities are resolved twice (&amp;quot; occurs in the wild), tags separate words, curly apostrophes become
    straight ones, other texts than ASCII are composed (NFC). Words are 1 to native.words.MAX_WORD_LENGTH characters
    long; lone surrogates, control characters and punctuation separate words.
    """
    words: list[str] = normalize(text).split()
    return words


def text_digest(words: Iterable[str]) -> bytes:
    """16-byte digest of a text with these words: two reviews with equal digests have the same words."""
    return normalized_digest(" ".join(words))


def normalized_digest(text: str) -> bytes:
    """The same of a text that normalize returned."""
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


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
    """Turns texts into token ids.

    Args:
        words: the vocabulary, in the order of vocabulary.txt: words[i] has id i + 2.
        settings: stop words and length.
        item_bytes: 2 or 4, of an id where ids are bytes.

    Raises:
        ValueError: the vocabulary has too many words for ids of this size.
    """

    def __init__(self, words: Sequence[str], settings: TextSettings, item_bytes: int = 4) -> None:
        if len(words) + FIRST_WORD_ID > 1 << 8 * item_bytes:
            raise ValueError(f"{len(words)} words do not fit ids of {item_bytes} bytes")
        self._item_bytes = item_bytes
        self._encoder = WordEncoder(
            list(map(to_ascii, words)), list(map(to_ascii, settings.stop_words)), settings.max_length, item_bytes
        )

    def encode(self, text: str) -> list[int]:
        """Ids of a raw text: at most max_length of them, none where the text has no words."""
        ids = self.encode_ascii(to_ascii(normalize(text)))
        return list(struct.unpack(f"<{len(ids) // self._item_bytes}{'H' if self._item_bytes == 2 else 'I'}", ids))

    def encode_ascii(self, text: bytes) -> bytes:
        """Ids of a text that went through normalize and to_ascii, as little-endian integers of item_bytes."""
        ids: bytes = self._encoder.encode(text)
        return ids
