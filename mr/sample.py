"""Makes reviews of its own for the demo and the tests: `python -m mr.sample --out FILE.jsonl.gz`.

The stars follow from the text: how many of its judgements are good and how many bad. About two in five judgements are
negated ("not sturdy", "no complaints", "isn't noisy"), in good and bad reviews alike, so counting good and bad words is
not enough: it takes a model that reads in order. The dirt of real files is in it as well: HTML entities, lost spaces,
duplicates, a few broken lines, a few reviews without a rating or a text.

Every row is a function of the seed and its number alone, on any machine.
"""

from __future__ import annotations

import argparse
import filecmp
import gzip
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from mr.errors import UsageError

DEFAULT_ROWS = 20_000
DEFAULT_SEED = 7
T = TypeVar("T")


def _words(text: str) -> list[str]:
    return text.split()


GOOD = _words(
    "good great excellent sturdy reliable comfortable handy quick lovely solid accurate clear smooth bright "
    "durable pleasant clever tidy useful perfect"
)
BAD = _words(
    "bad awful flimsy noisy slow useless ugly fragile wobbly dull faulty clumsy leaky sticky rough weak cheap "
    "annoying painful terrible"
)
PARTS = _words(
    "handle screen battery strap lid button cable case zipper motor lens cover hinge speaker stand filter "
    "blade charger mount pouch display seat wheel switch remote"
)
THINGS = _words(
    "kettle lamp guitar stand headset backpack blender tripod keyboard tent jacket speaker clock drill mixer "
    "camera bottle charger chair microphone"
)
PLACES = ("in the kitchen", "on my desk", "at work", "in the garage", "on the road", "at my parents' place", "upstairs")
PEOPLE = ("my sister", "my neighbour", "our son", "a friend", "my wife", "my uncle", "the whole family")
NEUTRAL = (
    "I ordered the {thing} in {month}",
    "It arrived on a {day}",
    "We keep it {place}",
    "{Person} has one like it",
    "The box also held a small bag and a leaflet",
    "I use it about twice a week {place}",
    "It replaced our old {thing}",
    "I read a lot about it before",
    "This was for {person}",
    "The colour is as shown",
    "It weighs about {number} pounds",
    "The {part} and the {other} come in one piece",
    "I have had it for {number} weeks now",
)
MONTHS = _words("January February March April May June July August September October November December")
DAYS = _words("Monday Tuesday Wednesday Thursday Friday Saturday")
PLAIN = (
    "the {part} is {word}",
    "the {part} feels really {word}",
    "I find the {part} {word}",
    "it is {word}",
    "the whole {thing} is {word}",
    "the {part} looks {word} to me",
    "everything about the {part} is {word}",
    "{person} says the {part} is {word}",
)
NEGATED = (
    "the {part} is not {word}",
    "the {part} isn't {word} at all",
    "I don't find the {part} {word}",
    "it was never {word}",
    "the {part} is hardly {word}",
    "nothing about the {part} is {word}",
    "I would not call the {part} {word}",
    "the {part} doesn't feel {word}",
    "it is anything but {word}",
)
FIXED = {
    True: (
        "no complaints",
        "I would buy it again",
        "no problems so far",
        "it never let me down",
        "I can't complain about the {part}",
        "no regrets here",
    ),
    False: (
        "I want my money back",
        "I would not buy it again",
        "it never worked",
        "no joy with the {part}",
        "I can't recommend the {thing}",
        "it let me down",
    ),
}
AVERAGE = ("it is just average", "nothing special", "so so", "it does the job and no more")
SUMMARIES = {5: "Five stars", 4: "Four stars", 3: "Three stars", 2: "Two stars", 1: "One star"}
NAMES = _words("Alda Bruno Cleo Dario Enid Falk Greta Hugo Ines Joran Kaja Lorin")
# Stars in percent; good and bad judgements per star rating.
STARS = ((5, 65), (4, 11), (3, 3), (2, 4), (1, 17))
JUDGEMENTS = {
    5: ((1, 0), (1, 0), (1, 0), (2, 0), (2, 0), (3, 0), (5, 0)),
    4: ((3, 1), (4, 1), (5, 1)),
    3: ((1, 1), (2, 2)),
    2: ((1, 3), (1, 4), (1, 5)),
    1: ((0, 1), (0, 1), (0, 1), (0, 2), (0, 2), (0, 3), (0, 5)),
}


class _Draws:
    """Random numbers of one row, from a hash of seed, row and a counter."""

    def __init__(self, seed: int, row: int) -> None:
        self._name = f"{seed}:{row}:"
        self._block = 0
        self._numbers: list[int] = []

    def below(self, limit: int) -> int:
        """A number from 0 to limit - 1."""
        if not self._numbers:
            digest = blake2b(f"{self._name}{self._block}".encode()).digest()
            self._numbers = [int.from_bytes(digest[at : at + 8], "big") for at in range(0, 64, 8)]
            self._block += 1
        return self._numbers.pop() % limit

    def one_of(self, values: Sequence[T]) -> T:
        """One of the values."""
        return values[self.below(len(values))]

    def percent(self, chance: float) -> bool:
        """True in so many cases of a hundred."""
        return self.below(10_000) < chance * 100


def lines(rows: int, seed: int) -> Iterator[bytes]:
    """Yield the file's lines, line ends included."""
    for row in range(rows):
        yield _line(seed, row) + b"\n"


def _line(seed: int, row: int) -> bytes:
    # The row's dirt has draws of its own, so that a duplicate can repeat the clean review of an earlier row.
    dirt = _Draws(seed, -1 - row)
    review = _review(seed, row)
    if row and dirt.percent(5):
        earlier = _review(seed, dirt.below(row))
        review |= {field: earlier[field] for field in ("reviewText", "overall", "summary")}
        if dirt.percent(10):
            review["overall"] = float(max(1, review["overall"] - 1))
    kind = dirt.below(1000)
    if kind < 3:
        del review["overall"]
    elif kind < 6:
        review["reviewText"] = ""
    elif kind < 7:
        del review["reviewText"]
    elif kind < 8:
        return str(review).encode()
    line = json.dumps(review).encode()
    return line[: 20 + dirt.below(60)] if kind == 8 else line


def _review(seed: int, row: int) -> dict[str, Any]:
    draws = _Draws(seed, row)
    stars = _stars(draws)
    text = _text(draws, stars)
    seconds = 1_325_376_000 + draws.below(900) * 86_400
    day = time.gmtime(seconds)
    voters = draws.below(9) if draws.percent(20) else 0
    return {
        "reviewerID": f"R{blake2b(f'{seed}:{draws.below(1 << 20)}'.encode(), digest_size=6).hexdigest().upper()}",
        "asin": f"X{draws.below(2_000):09d}",
        "reviewerName": f"{draws.one_of(NAMES)} {chr(65 + draws.below(26))}.",
        "helpful": [draws.below(voters + 1), voters],
        "reviewText": text,
        "overall": float(stars),
        "summary": SUMMARIES[stars],
        "unixReviewTime": seconds,
        "reviewTime": f"{day.tm_mon:02d} {day.tm_mday}, {day.tm_year}",
    }


def _stars(draws: _Draws) -> int:
    point = draws.below(100)
    for stars, share in STARS:
        point -= share
        if point < 0:
            return stars
    raise AssertionError("the shares of the stars sum to 100")


def _text(draws: _Draws, stars: int) -> str:
    good, bad = draws.one_of(JUDGEMENTS[stars])
    sentences = [_judgement(draws, True) for _ in range(good)] + [_judgement(draws, False) for _ in range(bad)]
    if stars == 3 and draws.percent(60):
        sentences.append(draws.one_of(AVERAGE))
    for _ in range(draws.below(14) if draws.percent(30) else draws.below(4)):
        sentences.append(_fill(draws, draws.one_of(NEUTRAL), ""))
    for last in range(len(sentences) - 1, 0, -1):
        other = draws.below(last + 1)
        sentences[last], sentences[other] = sentences[other], sentences[last]
    return _join(draws, sentences)


def _judgement(draws: _Draws, good: bool) -> str:
    if draws.percent(12):
        return _fill(draws, draws.one_of(FIXED[good]), "")
    negated = draws.percent(40)
    word = draws.one_of(GOOD if good != negated else BAD)
    return _fill(draws, draws.one_of(NEGATED if negated else PLAIN), word)


def _fill(draws: _Draws, pattern: str, word: str) -> str:
    person = draws.one_of(PEOPLE)
    return pattern.format(
        word=word,
        part=draws.one_of(PARTS),
        other=draws.one_of(PARTS),
        thing=draws.one_of(THINGS),
        person=person,
        Person=person[0].upper() + person[1:],
        place=draws.one_of(PLACES),
        month=draws.one_of(MONTHS),
        day=draws.one_of(DAYS),
        number=2 + draws.below(20),
    )


def _join(draws: _Draws, sentences: Sequence[str]) -> str:
    text = ""
    for number, sentence in enumerate(sentences):
        sentence = sentence[0].upper() + sentence[1:] + draws.one_of((".", ".", ".", ".", "!", "..."))
        if draws.percent(4):
            sentence = sentence.replace(" is ", " &amp; box is ").replace("'", "&#39;")
        if draws.percent(3):
            sentence = f"&quot;{sentence}&quot;"
        if number:
            text += "" if draws.percent(8) else "<br /><br />" if draws.percent(3) else " "
        text += sentence
    return text


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; python -m mr.sample --help explains all options")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status: 0 done, 1 failed while writing, 2 wrong usage."""
    parser = _Parser(
        prog="python -m mr.sample",
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--out", metavar="FILE", type=Path, required=True, help="new file, .jsonl.gz; replaced if there"
    )
    parser.add_argument("--rows", type=int, default=DEFAULT_ROWS, help=f"number of lines (default: {DEFAULT_ROWS})")
    parser.add_argument(
        "--seed", type=int, default=DEFAULT_SEED, help=f"other seed, other reviews (default: {DEFAULT_SEED})"
    )
    try:
        values = parser.parse_args(arguments)
        if values.rows < 1:
            raise UsageError(f"--rows {values.rows}: give a whole number of at least 1")
        if not values.out.name.endswith(".jsonl.gz") or values.out.is_dir():
            raise UsageError(f"--out {values.out}: give a file name that ends in .jsonl.gz")
        if not values.out.absolute().parent.is_dir():
            raise UsageError(f"--out {values.out}: there is no folder {values.out.parent}; make it first")
        write(values.out, values.rows, values.seed)
    except (UsageError, OSError) as error:
        reason = f"--out {values.out}: {error.strerror}" if isinstance(error, OSError) else str(error)
        print(f"mr.sample: {reason}", file=sys.stderr)
        return 1 if isinstance(error, OSError) else 2
    print(f"{values.out}: {values.rows:,} lines")
    return 0


def write(path: Path, rows: int, seed: int) -> None:
    """Write a file of so many lines; it appears whole or not at all.

    Raises:
        UsageError: there is a file already that holds something else.
        OSError: it cannot be written.
    """
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        # Neither name nor time in the gzip header: equal arguments give equal bytes.
        with unfinished.open("wb") as stream, gzip.GzipFile("", "wb", 6, stream, mtime=0) as zipped:
            zipped.writelines(lines(rows, seed))
        if path.exists() and not filecmp.cmp(unfinished, path, shallow=False):
            raise UsageError(f"--out {path}: there is such a file already; name another one, or remove it")
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main())
