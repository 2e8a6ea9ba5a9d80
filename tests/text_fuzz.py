"""Mutated lines through the parser and both tokenizers: `python -m tests.text_fuzz --count 100000 --seed 1`.

Every line goes through the clean job's mapper twice, with the compiled tokenizer and with its twin. What becomes of it
must be the same, and exactly one thing. What comes out as a review is then counted and encoded by both. A line is a
function of the seed and its number, so that a failure can be repeated alone.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

from mr import clean, sample
from mr.records import REVIEW
from mr.settings import Settings
from mr.shards import encode_record
from native import words as twin
from native.text import TextSettings
from native.tokenizer import normalize as compiled_normalize
from native.vocabulary import WordCounter, WordEncoder


def _pieces(text: str) -> list[str]:
    return text.split(" ")


PIECES = [
    *_pieces(
        "&amp; &quot; &#34; &#x27; &amp;#39; &amp;amp;lt; &nbsp; &notit; &not;good &#0; &#xD800; &#1114112; &#8217;"
    ),
    *_pieces("&lt;b&gt; &amp & ; &; &#; &eacute; &#128077; &NotEqualTilde; &#12345678; &#X1F600; &grave; &sect"),
    *_pieces("<br /> <br/> <b> </b> <a\thref='x'> <a\thref=<b>> < > <3 <<b>> <b </ <img\tsrc= <\u0338b> <b>\u0338 <b/"),
    *_pieces(
        "<p\n> <\u00a0b> <b\u2003/> <b\x85a=1> ' ` '' \u2019 \u2018 \u201b \u02bc \u2032 \u00b4 \uff07 n't o'clock"
    ),
    *_pieces("rock'n'roll _ . ... expected.As ! - \\ \" / 3.5 100% \u00b2 \u216b \u0663 caf\u00e9 cafe\u0301 \u00c9"),
    *_pieces(
        "\u0130 \u0149 \u1e9e \u00df \ufb01 \u01c5 a\u0328\u0301 \u212a \u212b \u0391\u03a3 \u03c3\u03a3' \u1fef \u1ffd"
    ),
    *_pieces("\u0345 \u0301 \u0338 \u1100\u1161\u11a8 \uac00\u11a8 \u5f88\u597d \u65e5\u672c\u8a9e \u3042\u3099"),
    *_pieces(
        "\u043e\u0447\u0435\u043d\u044c \u0939\u093f\u0928\u094d\u0926\u0940 \u0645\u064f\u0645\u062a \u0e14\u0e35"
    ),
    *_pieces(
        "\u05e9\u05c1 \U0001f44d \U0001f44d\U0001f3fd \u2764\ufe0f \U0001f1e9\U0001f1ea \U0001f468\u200d\U0001f469"
    ),
    *_pieces(
        "\u2776 \u2600 \U00020000 \U0001d400 \U00016d67\U00016d67 \U000e0041 \U0010ffff \ud83d \udc4d \ud83d\udc4d"
    ),
    *("x" * 39, "y" * 40, "z" * 41, "w" * 39 + "'s", "W" * 200, "< b >", " ", "  ", "\t", "\n", "\x00", "\x1c", "\x85"),
    *("\u00a0", "\u2028", "\ufeff", "\u200d", "\u200b"),
]
"""what tokenizers stumble over"""
BYTES = b"\"'{}[],:\\\r\t\x00\x1c\x7f\x80\xbf\xc0\xe2\xed\xa0\xf0\x9f\xf4\xff 5aZ&<"
PLANES = (0x80, 0x800, 0x3000, 0x10000, 0x20000, 0x110000)
"""a character is drawn below one of these"""
STOP_WORDS = ("the", "caf\u00e9")
MAX_LENGTH = 40
VOCABULARY = 2_000
BLOCK = 1_000


class Fuzz:
    """Lines, and what becomes of them.

    Args:
        seed: any whole number.
        folder: for the settings of the job.
    """

    def __init__(self, seed: int, folder: Path) -> None:
        self.seed = seed
        self._words = b" ".join(sample.lines(200, seed)).decode().split(" ")
        self._settings = Settings(
            text=TextSettings(max_length=MAX_LENGTH, stop_words=STOP_WORDS),
            split={"train": 100.0},
            vocab_size=VOCABULARY,
        ).write(folder / "settings.json")

    def text(self, number: int) -> str:
        """A raw text: words of reviews, and pieces between and inside them."""
        return self._text(random.Random(f"text {self.seed} {number}"))

    def line(self, number: int) -> bytes:
        """A whole line: a review with such a text; the bytes of every other one were changed too."""
        draw = random.Random(f"line {self.seed} {number}")
        review = {"reviewText": self._text(draw), "overall": draw.choice([1, 2.0, "3", 4, 5.0, 1, 2, 3, None, 3.5])}
        if draw.random() < 0.05:
            review["reviewText"] = draw.choice([None, "", " ... ", "<br />", "the The", 5, ["x"], {"y": 1}])
        line = bytearray(json.dumps(review, ensure_ascii=draw.random() < 0.5).encode("utf-8", "surrogatepass"))
        if number % 2:
            for _ in range(draw.randrange(1, 4)):
                at = draw.randrange(len(line))
                line[at : at + draw.choice([0, 1, 1, 1, 2, 30])] = bytes(draw.choices(BYTES, k=draw.randrange(3)))
        return bytes(line).replace(b"\n", b" ")

    def run(self, count: int) -> Counter[str]:
        """Try `count` lines; how many of them became what.

        Raises:
            AssertionError: the two differ, or a line is not accounted for; the message names the case.
        """
        outcomes: Counter[str] = Counter()
        texts: list[bytes] = []
        for first in range(0, count, BLOCK):
            lines = [self.line(number) for number in range(first, min(first + BLOCK, count))]
            compiled, slow = self._become(lines, compiled_normalize), self._become(lines, twin.normalize)
            for number, (found, expected) in enumerate(zip(compiled, slow, strict=True), first):
                assert found == expected, f"case {number} of seed {self.seed}: {found}, but the twin has {expected}"
                kinds, records, _ = found
                assert len(kinds) == 1, f"case {number} of seed {self.seed}: one line became {kinds}"
                outcomes[kinds[0]] += 1
                texts += [value.split(b",", 3)[3] for _, value in records if kinds == ["review"]]
        self._compare_numbers(texts)
        return outcomes

    def _text(self, draw: random.Random) -> str:
        words = [word + " " for word in draw.choices(self._words, k=draw.randrange(60))]
        for _ in range(draw.randrange(12)):
            at = draw.randrange(len(words) + 1)
            words[at:at] = draw.choices(PIECES, k=draw.randrange(1, 4))
        for _ in range(draw.randrange(4)):
            words.insert(draw.randrange(len(words) + 1), chr(draw.randrange(draw.choice(PLANES))))
        return "".join(words)

    def _become(
        self, lines: list[bytes], normalize: Callable[[str], str]
    ) -> list[tuple[list[str], list[tuple[bytes, bytes]], dict[str, int]]]:
        """Of each line: its kinds (one, it should be), its records, and what was counted."""
        job = clean.CleanJob(["--mapper", "--settings", str(self._settings)])
        job.mapper_init()
        found = []
        with patch.object(clean, "normalize", normalize):
            for number, line in enumerate(lines):
                records = list(job.mapper(None, encode_record(0, number, line).removesuffix(b"\n")))
                counted = dict(job.numbers)
                job.numbers.clear()
                kinds = [name.rpartition(":")[2] for name in counted if name.startswith("file:")]
                kinds += ["review" for key, _ in records if key.startswith(REVIEW)]
                found.append((kinds, records, counted))
        return found

    def _compare_numbers(self, texts: list[bytes]) -> None:
        stop_words = list(map(twin.to_ascii, STOP_WORDS))
        ours, its = WordCounter(stop_words), twin.WordCounter(stop_words)
        for text in texts:
            assert ours.add(text) == its.add(text), f"seed {self.seed}: the words of {text!r} are not counted alike"
        assert list(ours.items()) == list(its.items()), f"seed {self.seed}: the counts differ"
        words = [word for word, _ in Counter(dict(its.items())).most_common(VOCABULARY)]
        for item_bytes in (2, 4):
            encoder = WordEncoder(words, stop_words, MAX_LENGTH, item_bytes)
            slow = twin.WordEncoder(words, stop_words, MAX_LENGTH, item_bytes)
            for text in texts:
                assert encoder.encode(text) == slow.encode(text), f"seed {self.seed}: other ids for {text!r}"


def main() -> int:
    """Run the campaign; the status is 1 where something differs."""
    parser = argparse.ArgumentParser(prog="python -m tests.text_fuzz")
    parser.add_argument("--count", type=int, default=100_000, help="lines (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="another seed, other lines (default: %(default)s)")
    options = parser.parse_args()
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        try:
            outcomes = Fuzz(options.seed, Path(folder)).run(options.count)
        except AssertionError as error:
            print(f"text_fuzz: {error}", file=sys.stderr)
            return 1
    print(
        json.dumps({"lines": options.count, "outcomes": outcomes, "seconds": round(time.perf_counter() - started, 1)})
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
