"""The same work as `python -m mr`, without mrjob: the project's own functions in a few processes.

    ranges of the file --parse, normalise, digest--> texts by the beginning of their digest
        --per part: drop duplicates, count words--> vocabulary --encode--> rows --one writer--> dataset

It is what the machine could do, and makes the same bytes. What it lacks: any other input than JSON lines, any other
machine than this one, protection against a failing task, progress, a quarantine, memory bounds.
"""

from __future__ import annotations

import argparse
import pickle
import sys
import tempfile
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from heapq import nsmallest
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from mr.buckets import choose_bounds
from mr.options import DEFAULT_SPLIT, DEFAULT_VOCAB_SIZE, parse_split
from mr.records import decode_words
from mr.review import Fields, Malformed, parse_review
from native.format import COUNT_FIELDS
from native.text import (
    FIRST_WORD_ID,
    SPLITS,
    Encoder,
    TextSettings,
    WordCounter,
    normalize,
    normalized_digest,
    split_of,
    to_ascii,
)
from native.writer import DatasetWriter

RANGE_BYTES = 8 << 20
ROWS_A_WRITE = 4096
"""rows handed to the writer at a time; the bytes do not depend on it"""


@dataclass(frozen=True)
class Work:
    """What every task knows."""

    source: Path
    folder: Path
    """for files between the tasks"""
    parts: int
    """of the digests"""


def read_range(work: Work, start: int, stop: int) -> Counter[str]:
    """Read the lines that begin in [start, stop) and put them by digest; what became of the others."""
    counts: Counter[str] = Counter()
    parts: list[list[tuple[bytes, int, int, bytes]]] = [[] for _ in range(work.parts)]
    for place, line in _lines(work.source, start, stop):
        counts["lines"] += 1
        try:
            text, stars = parse_review(line, Fields()) if line.strip() else ("", 0)
        except Malformed:
            counts["malformed"] += 1
            continue
        if stars is None:
            counts["without_rating"] += 1
        elif text := normalize(text):
            digest = normalized_digest(text)
            parts[digest[0] * work.parts >> 8].append((digest, place, stars, to_ascii(text)))
        else:
            counts["empty"] += 1
    for number, rows in enumerate(parts):
        _dump(work.folder / f"texts-{number}-{start}", rows)
    return counts


def count_part(work: Work, part: int, max_length: int) -> tuple[Counter[str], dict[str, Counter[int]], dict[Any, int]]:
    """Drop a part's duplicates and sort it; what became of its lines, lengths per split, and words."""
    votes: dict[bytes, list[int]] = {}
    texts: dict[bytes, bytes] = {}
    lines = 0
    for path in work.folder.glob(f"texts-{part}-*"):
        for digest, _, stars, text in _load(path):
            lines += 1
            if digest not in votes:
                votes[digest], texts[digest] = [0] * 6, text
            votes[digest][stars] += 1
        path.unlink()
    split_shares, words = parse_split(DEFAULT_SPLIT), WordCounter([])
    lengths: dict[str, Counter[int]] = {split: Counter() for split in SPLITS}
    rows = []
    for digest in sorted(texts):
        split, text = split_of(digest, split_shares), texts[digest]
        length = words.add(text) if split == "train" else words.length(text)
        lengths[split][min(length, max_length)] += 1
        rows.append((SPLITS.index(split), votes[digest].index(max(votes[digest])), text))
    _dump(work.folder / f"distinct-{part}", rows)
    counts = Counter({"kept": len(rows), "duplicates": lines - len(rows)})
    return counts, lengths, dict(words.items())


def encode_part(work: Work, part: int, words: tuple[str, ...], bounds: list[int], item_bytes: int) -> None:
    """Turn a part's texts into rows of ids, by split and bucket."""
    encoder = Encoder(words, TextSettings(), item_bytes)
    groups: dict[tuple[int, int], tuple[list[bytes], list[int]]] = {}
    for split, stars, text in _load(work.folder / f"distinct-{part}"):
        ids = encoder.encode_ascii(text)
        bucket = bisect_left(bounds, len(ids) // item_bytes)
        rows, ratings = groups.setdefault((split, bucket), ([], []))
        rows.append(ids)
        ratings.append(stars)
    for (split, bucket), (rows, ratings) in groups.items():
        size = bounds[bucket] * item_bytes
        tokens = np.frombuffer(b"".join(row.ljust(size, b"\0") for row in rows), f"<u{item_bytes}")
        lengths = np.array([len(row) // item_bytes for row in rows], np.uint16)
        columns = tokens.reshape(len(rows), -1), lengths, np.array(ratings, np.uint8)
        _dump(work.folder / f"rows-{split}-{bucket}-{part}", columns)


def preprocess(source: Path, out: Path, cores: int, folder: Path) -> dict[str, Any]:
    """Make the dataset with the default settings; returns its manifest.

    Args:
        source: JSON lines.
        out: new folder.
        cores: processes.
        folder: for files between the tasks.
    """
    size, settings = source.stat().st_size, TextSettings()
    work = Work(source, folder, cores)
    with ProcessPoolExecutor(cores, get_context("fork")) as pool:
        ranges = [(start, min(start + RANGE_BYTES, size)) for start in range(0, size, RANGE_BYTES)]
        read = list(pool.map(read_range, *zip(*((work, *item) for item in ranges), strict=True)))
        counted = list(pool.map(count_part, *zip(*((work, n, settings.max_length) for n in range(cores)), strict=True)))
        lengths = {split: sum((found[1][split] for found in counted), Counter[int]()) for split in SPLITS}
        vocabulary = _most_frequent([found[2] for found in counted])
        longest = max(max(of_split, default=0) for of_split in lengths.values())
        bounds = choose_bounds(lengths["train"], longest, settings.max_length)
        item_bytes = 2 if len(vocabulary) + FIRST_WORD_ID <= 1 << 16 else 4
        tasks = [(work, part, vocabulary, bounds, item_bytes) for part in range(cores)]
        list(pool.map(encode_part, *zip(*tasks, strict=True)))
    counts: Counter[str] = sum([*read, *(found[0] for found in counted)], Counter())
    rows = {split: [0] * len(bounds) for split in SPLITS}
    for split, of_split in lengths.items():
        for length, count in of_split.items():
            rows[split][bisect_left(bounds, length)] += count
    writer = DatasetWriter(out, bounds=bounds, rows=rows, vocabulary=vocabulary)
    for split, bucket, tokens, *others in _rows(work, len(bounds)):
        for start in range(0, len(tokens), ROWS_A_WRITE):
            block = slice(start, start + ROWS_A_WRITE)
            writer.write(SPLITS[split], bucket, tokens[block], *(column[block] for column in others))
    return writer.finish(text=settings.to_json(), counts={field: counts[field] for field in COUNT_FIELDS})


def _rows(work: Work, buckets: int) -> Iterator[tuple[Any, ...]]:
    """Yield (split, bucket, tokens, lengths, stars), in the dataset's order."""
    for split in range(len(SPLITS)):
        for bucket in range(buckets):
            paths = [work.folder / f"rows-{split}-{bucket}-{part}" for part in range(work.parts)]
            columns = [_load(path) for path in paths if path.exists()]
            if columns:
                yield split, bucket, *(np.concatenate(column) for column in zip(*columns, strict=True))


def _most_frequent(counted: list[dict[Any, int]]) -> tuple[str, ...]:
    total: Counter[bytes] = Counter()
    for words in counted:
        total.update(words)
    named = ((-count, decode_words(word)[0]) for word, count in total.items())
    return tuple(word for _, word in nsmallest(DEFAULT_VOCAB_SIZE, named))


def _lines(path: Path, start: int, stop: int) -> Iterator[tuple[int, bytes]]:
    with path.open("rb", buffering=1 << 20) as stream:
        if start:
            stream.seek(start - 1)
            stream.readline()  # what began before belongs to the range before
        place = stream.tell()
        while place < stop and (line := stream.readline()):
            yield place, line.rstrip(b"\r\n")
            place += len(line)


def _dump(path: Path, value: object) -> None:
    with path.open("wb") as stream:
        pickle.dump(value, stream, pickle.HIGHEST_PROTOCOL)


def _load(path: Path) -> Any:
    with path.open("rb") as stream:
        return pickle.load(stream)


def main() -> int:
    """Run the command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.preprocess_bare", description=__doc__)
    parser.add_argument("input", type=Path, help="JSON lines")
    parser.add_argument("--out", type=Path, required=True, help="new folder")
    parser.add_argument("--cores", type=int, default=2, help="processes (default: %(default)s)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(preprocess(options.input, options.out, options.cores, Path(folder))["digest"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
