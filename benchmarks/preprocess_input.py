"""The reviews that the ways of preprocessing are measured on: one plain file of JSON lines, the same for all of them.

Generated ones are in the style of the Amazon files of 2014: their nine fields, about as many bytes a line as those
have (92 GB / 142.8 million = 644), made-up words as frequent as those of a language (Zipf), HTML entities and tags,
spaces lost after full stops, duplicates, and a few lines without a text, without a rating, or broken.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mr.reading import read_records
from mr.review import Fields, Malformed, parse_review
from mr.stopwords import ENGLISH

SEED = 7
WORDS = 200_000
"""different words at most; 10,000 of them are 95 % of the text, as in real reviews"""
MEDIAN_LENGTH, SPREAD = 45, 1.0
"""words of a review: lognormal, mean 74, as real ones have"""
BLOCK_LINES = 10_000
DUPLICATES, NO_TEXT, NO_RATING, BROKEN = 0.05, 0.003, 0.003, 0.0002
STARS = np.array([0.08, 0.05, 0.09, 0.19, 0.59])
ENDS = (".", ".", ".", ",", ",", "!", "...", ".<br /><br />", " &#34;quoted&#34;", " &amp; more")
_CONSONANTS, _VOWELS = "tnsrhldcmfpgwyb", "eaoiu"


def generated(folder: Path, lines: int, seed: int = SEED, median_length: int = MEDIAN_LENGTH) -> Path:
    """The file of so many generated lines; written where it is missing."""
    kind = "" if median_length == MEDIAN_LENGTH else f"-of-{median_length}"
    path = folder / f"reviews-{lines}-{seed}{kind}.jsonl"
    if not path.exists():
        _write_whole(path, generate(lines, seed, median_length))
    return path


def gathered(folder: Path, files: Sequence[Path]) -> Path:
    """One file of JSON lines with the records of all files, whatever their form; what is no record is left out.

    Raises:
        mr.errors.UsageError: a file cannot be read.
    """
    path = folder / "gathered.jsonl"
    records = (record for file in files for _, _, record in read_records(file, Fields()))
    _write_whole(path, (record for record in records if not isinstance(record, Malformed)))
    return path


def sound_slice(path: Path, lines: int) -> Path:
    """The first so many lines that have a text and a rating, in a file beside the given one."""
    target = path.with_name(f"{path.stem}-first-{lines}.jsonl")

    def sound() -> Iterator[bytes]:
        left = lines
        with path.open("rb") as stream:
            while left and (line := stream.readline()):
                try:
                    text, stars = parse_review(line, Fields())
                except Malformed:
                    continue
                if text and stars and line.startswith(b"{"):
                    left -= 1
                    yield line.rstrip(b"\r\n")

    _write_whole(target, sound())
    return target


def generate(lines: int, seed: int, median_length: int = MEDIAN_LENGTH) -> Iterator[bytes]:
    """Yield the lines, without line ends; equal arguments give equal lines (with the same release of NumPy).

    Args:
        lines: how many.
        seed: other seed, other reviews.
        median_length: of the texts, in words.
    """
    rng = np.random.default_rng(seed)
    # The most frequent are real stop words, so that leaving them out saves what it saves with real text.
    frequent = sorted(ENGLISH, key=lambda word: (len(word), word))
    words = frequent + [_word(rank) for rank in range(WORDS - len(frequent))]
    ranks = np.arange(WORDS)
    edges = np.cumsum(1 / (ranks + 2.7) / (1 + ranks / 3000) ** 1.2)
    edges /= edges[-1]
    texts: list[str] = []
    for start in range(0, lines, BLOCK_LINES):
        count = min(BLOCK_LINES, lines - start)
        lengths = np.clip(rng.lognormal(np.log(median_length), SPREAD, count), 1, 3000).astype(int)
        ids = np.searchsorted(edges, rng.random(int(lengths.sum()))).tolist()
        texts = _texts(rng, [words[number] for number in ids], lengths, texts)
        yield from _lines(rng, texts)


def _texts(rng: np.random.Generator, words: list[str], lengths: np.ndarray, earlier: list[str]) -> list[str]:
    """A block's texts: sentences of the words; some repeat one of the block before."""
    begins_sentence = rng.random(len(words)) < 0.07
    ends = rng.integers(len(ENDS), size=len(words)).tolist()
    glued = (rng.random(len(words)) < 0.005).tolist()
    for place in np.flatnonzero(begins_sentence)[1:].tolist():
        words[place - 1] += ENDS[ends[place]]
        words[place] = words[place].capitalize()
        if glued[place]:  # the space after the full stop is lost
            words[place - 1], words[place] = "", words[place - 1] + words[place]
    stops = np.cumsum(lengths).tolist()
    found = [" ".join(words[start:stop]) for start, stop in zip([0, *stops], stops, strict=False)]
    if earlier:
        for place in np.flatnonzero(rng.random(len(found)) < DUPLICATES).tolist():
            found[place] = earlier[int(rng.integers(len(earlier)))]
    return found


def _lines(rng: np.random.Generator, texts: list[str]) -> Iterator[bytes]:
    stars = rng.choice(5, len(texts), p=STARS) + 1
    people, products = rng.integers(1 << 40, size=len(texts)), rng.integers(1 << 24, size=len(texts))
    days, votes = rng.integers(5000, size=len(texts)), rng.integers(4, size=len(texts))
    dirt = rng.random(len(texts))
    for place, text in enumerate(texts):
        seconds = 946_684_800 + 86_400 * int(days[place])
        day = time.gmtime(seconds)
        review: dict[str, Any] = {
            "reviewerID": f"A{people[place]:012X}",
            "asin": f"B{products[place]:09d}",
            "reviewerName": text[:12].title(),
            "helpful": [int(votes[place]), int(votes[place])],
            "reviewText": text,
            "overall": float(stars[place]),
            "summary": text[8:40],
            "unixReviewTime": seconds,
            "reviewTime": f"{day.tm_mon:02d} {day.tm_mday}, {day.tm_year}",
        }
        if dirt[place] < NO_TEXT:
            review["reviewText"] = ""
        elif dirt[place] < NO_TEXT + NO_RATING:
            del review["overall"]
        line = json.dumps(review).encode()
        yield line[:80] if dirt[place] > 1 - BROKEN else line


def _word(rank: int) -> str:
    """Frequent words are short: 75 of one syllable, 5,625 of two, the rest of three."""
    syllables = len(_CONSONANTS) * len(_VOWELS)
    word, rest = "", rank
    while True:
        consonant, vowel = divmod(rest % syllables, len(_VOWELS))
        word += _CONSONANTS[consonant] + _VOWELS[vowel]
        rest = rest // syllables - 1
        if rest < 0:
            return word + "n't" if rank % 97 == 50 else word


def _write_whole(path: Path, lines: Iterable[bytes]) -> None:
    unfinished = path.with_name(f".{path.name}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with unfinished.open("wb", buffering=1 << 20) as stream:
        stream.writelines(line + b"\n" for line in lines)
    unfinished.replace(path)
