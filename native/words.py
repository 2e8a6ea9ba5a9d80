"""From a text to its words and their numbers, in plain Python: the twin of native/tokenizer.pyx and vocabulary.pyx.

`normalize`, `WordCounter` and `WordEncoder` have equal results there and here. These run where the others are not
compiled, as on a worker of a Hadoop or Spark cluster without a compiler. `prepare` serves both: it alone knows what
markup is and asks Unicode's tables about case and composition, so that in these the two cannot differ.
"""

from __future__ import annotations

import html
import re
import unicodedata
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import islice

MAX_WORD_LENGTH = 40
"""characters; what is longer is a link, a typed-on key or a run without spaces, and is cut"""
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
MARKS = (
    "\u0300-\u036f\u0483-\u0487\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u0610-\u061a\u064b-\u065f\u0670"
    "\u06d6-\u06dc\u06df-\u06e4\u06e7\u06e8\u06ea-\u06ed\u0900-\u0903\u093a-\u094f\u0951-\u0957\u0962\u0963"
    "\u0981-\u0983\u09bc-\u09cd\u0a01-\u0a4d\u0a81-\u0acd\u0b01-\u0b4d\u0b82-\u0bcd\u0c00-\u0c56\u0c81-\u0cd6"
    "\u0d00-\u0d4d\u0e31\u0e34-\u0e3a\u0e47-\u0e4e\u0eb1\u0eb4-\u0ebc\u0ec8-\u0ecd\u102b-\u103e\u17b4-\u17d3"
)
# Pictographs; skin tones (1F3FB..1F3FF) and variation selectors are left out, so that an emoji is one word.
EMOJI = "\u2600-\u27bf\u2b50\u2b55\U0001f000-\U0001f3fa\U0001f400-\U0001faff"
# The underscore, which \w would take, is replaced before.
_WORDS = re.compile(rf"[\w{MARKS}]+(?:'[\w{MARKS}]+)*|[{EMOJI}]")
_APOSTROPHES = "\u2019\u2018\u201b\u02bc\u2032\u00b4`\uff07"


def ranges(characters: str) -> list[tuple[int, int]]:
    """First and last code point of each range in the inside of a character class, such as MARKS."""
    return [(ord(first), ord(last or first)) for first, last in re.findall("(.)(?:-(.))?", characters)]


def to_ascii(text: str) -> bytes:
    """A normalised text, or a word of one, as the jobs' records hold it: other characters as Python escapes.

    Different texts stay different, whatever they hold.
    """
    return text.replace("\\", "\\\\").encode("ascii", "backslashreplace")


def prepare(text: str) -> str:
    """A text without markup and, unless it is ASCII, in lower case, composed (NFC) and with straight apostrophes.

    Entities are resolved twice: &amp;quot; occurs in the wild. A tag becomes a blank.
    """
    if "&" in text:
        text = _ENTITY.sub(_character, text)
        if "&" in text:
            text = _ENTITY.sub(_character, text)
    if "<" in text:
        text = _TAG.sub(" ", text)
    return text if text.isascii() else _fold(text)


_unescape = lru_cache(1024)(html.unescape)


def _character(entity: re.Match[str]) -> str:
    return _unescape(entity[0])


def _fold(text: str) -> str:
    for apostrophe in _APOSTROPHES:
        text = text.replace(apostrophe, "'")
    if text.isascii():
        return text
    # Composing makes a backtick of U+1FEF, a Greek accent and no apostrophe.
    return unicodedata.normalize("NFC", text.replace("_", " ").lower()).replace("`", " ")


def normalize(text: str) -> str:
    """The words of a raw text, joined by single blanks; see native.text."""
    text = prepare(text)
    words = _ascii_words(text) if text.isascii() else _WORDS.findall(text)
    if words and max(map(len, words)) > MAX_WORD_LENGTH:
        words = [word[:MAX_WORD_LENGTH].rstrip("'") for word in words]
    return " ".join(words)


def _ascii_words(text: str) -> list[str]:
    text = text.translate(_ASCII_WORDS)
    if "'" in text:
        text = _OUTER_APOSTROPHE.sub(" ", text)
    return text.split()


class WordCounter:
    """How often each word stands in the texts added so far.

    Args:
        stop_words: words, by to_ascii, that are not counted.
    """

    def __init__(self, stop_words: Iterable[bytes] = ()) -> None:
        self._stop_words = frozenset(stop_words)
        self._counts: Counter[bytes] = Counter()

    def __len__(self) -> int:
        return len(self._counts)

    def add(self, text: bytes) -> int:
        """Count the words of a normalised text (by to_ascii); returns their number, without stop words."""
        words = self._kept(text)
        self._counts.update(words)
        return len(words)

    def length(self, text: bytes) -> int:
        """What add returns, without counting."""
        return len(self._kept(text))

    def items(self) -> Iterator[tuple[bytes, int]]:
        """Words and counts, in the order in which they first came."""
        yield from self._counts.items()

    def clear(self) -> None:
        """Forget all counts."""
        self._counts.clear()

    def _kept(self, text: bytes) -> list[bytes]:
        words = text.split()
        return [word for word in words if word not in self._stop_words] if self._stop_words else words


class WordEncoder:
    """Turns normalised texts into token ids.

    Args:
        words: the vocabulary by to_ascii: words[i] has id i + 2.
        stop_words: words, by to_ascii, that are left out before the text is cut.
        max_length: words of a text that are kept, from its beginning; 1..9999.
        item_bytes: 2 or 4, of an id; every id must fit.
    """

    def __init__(self, words: Sequence[bytes], stop_words: Iterable[bytes], max_length: int, item_bytes: int) -> None:
        self._ids = {word: number for number, word in enumerate(words, FIRST_WORD_ID)}
        self._stop_words = frozenset(stop_words)
        self._max_length = max_length
        self._typecode = "H" if item_bytes == 2 else "I"

    def encode(self, text: bytes) -> bytes:
        """The ids of a normalised text (by to_ascii), as little-endian integers."""
        words: Iterable[bytes] = text.split()
        if self._stop_words:
            words = (word for word in words if word not in self._stop_words)
        known = self._ids.get
        ids = array(self._typecode, [known(word, UNKNOWN_ID) for word in islice(words, self._max_length)])
        if array("H", [1]).tobytes() != b"\x01\x00":
            ids.byteswap()
        return ids.tobytes()
