"""The rows that every method stores and reads, and what all methods have in common.

Rows are made from a seed, block by block: 89 to 100 token ids that fall in frequency as words of a language do,
padded with 0 to 100, and 1 to 5 stars. Each method keeps them in a format of its own under the work folder, written
when it is first needed and used again while its recipe stays the same.
"""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

LENGTH = 100
"""token ids of a row, padding included"""
SHORTEST = 89
WORDS = 10_000
FIRST_WORD_ID = 2
BLOCK_ROWS = 65_536
RECIPE = 1
"""raised when the rows or a format change, so that everything is written again"""
SPARE_BYTES = 1 << 30
"""disk left free"""
Batches = Iterator[np.ndarray]


@dataclass(frozen=True)
class Work:
    """What a method is asked to read."""

    folder: Path
    """where formats of this number of rows are kept"""
    rows: int
    batch_size: int
    seed: int


def row_blocks(rows: int, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Tokens uint16 [n, LENGTH], lengths uint16 [n] and stars uint8 [n] of all rows, BLOCK_ROWS at a time."""
    ids = _frequency_table()
    for block, start in enumerate(range(0, rows, BLOCK_ROWS)):
        rng = np.random.default_rng([seed, block])
        count = min(BLOCK_ROWS, rows - start)
        lengths = rng.integers(SHORTEST, LENGTH + 1, count, dtype=np.uint16)
        stars = np.repeat(np.arange(1, 6, dtype=np.uint8), (17, 4, 3, 11, 65))[rng.integers(0, 100, count)]
        tokens = ids[rng.integers(0, len(ids), (count, LENGTH), dtype=np.uint32)]
        tokens[np.arange(LENGTH) >= lengths[:, None]] = 0
        yield tokens, lengths, stars


def _frequency_table() -> np.ndarray:
    """Ids by equal steps of their cumulated frequency: a random entry is an id drawn by Zipf-Mandelbrot's law."""
    steps = 1 << 18
    cumulated = np.cumsum(1.0 / (np.arange(WORDS) + 2.7))
    points = (np.arange(steps) + 0.5) / steps * cumulated[-1]
    ids: np.ndarray = (np.searchsorted(cumulated, points) + FIRST_WORD_ID).astype(np.uint16)
    return ids


def prepared(folder: Path, recipe: Mapping[str, Any], size: int, write: Callable[[Path], None]) -> Path:
    """The folder, written anew unless it was finished by the same recipe and still has all its bytes.

    Args:
        folder: replaced when it does not fit.
        recipe: plain values that decide the content.
        size: bytes it will take, about.
        write: called with the empty folder.

    Raises:
        OSError: too little disk.
    """
    note = folder.with_name(f"{folder.name}.json")
    wanted = {"recipe": RECIPE, **recipe}
    try:
        if json.loads(note.read_text()) == wanted | {"bytes": stored_bytes(folder)}:
            return folder
    except (OSError, ValueError):
        pass
    note.unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    free = shutil.disk_usage(folder).free
    if free < size + SPARE_BYTES:
        raise OSError(
            f"not enough disk: {folder.name} needs {size / 1e9:.1f} GB and 1 GB to spare, {free / 1e9:.1f} are free"
        )
    write(folder)
    note.write_text(json.dumps(wanted | {"bytes": stored_bytes(folder)}))
    return folder


def stored_files(folder: Path) -> list[Path]:
    """All files below a folder."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


def stored_bytes(folder: Path) -> int:
    """Their bytes together."""
    return sum(path.stat().st_size for path in stored_files(folder))


def warm(folder: Path) -> None:
    """Bring a folder's files into the page cache.

    Raises:
        OSError: they do not fit in memory, so that nothing measured with them would be warm.
    """
    size, room = stored_bytes(folder), _available_memory()
    if size > room:
        raise OSError(
            f"not enough memory for a warm cache: {folder.name} has {size / 1e9:.1f} GB, {room / 1e9:.1f} are free"
        )
    for path in stored_files(folder):
        with path.open("rb", buffering=0) as stream:
            while stream.read(1 << 20):
                pass


def _available_memory() -> int:
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))


def touch_pages(values: np.ndarray) -> None:
    """Map every page of a memory-mapped array: reads of pages that were never touched measure the kernel."""
    flat = values.reshape(-1)
    flat[:: max(1, 2048 // flat.itemsize)].max()


def source(work: Work) -> np.ndarray:
    """All rows as one memory-mapped array, uint16 [rows, LENGTH]; written, with their fingerprints, when missing."""

    def write(folder: Path) -> None:
        tokens = np.lib.format.open_memmap(folder / "tokens.npy", "w+", np.uint16, (work.rows, LENGTH))
        prints = np.empty(work.rows, np.uint64)
        done = 0
        for block, _, _ in row_blocks(work.rows, work.seed):
            tokens[done : done + len(block)] = block
            prints[done : done + len(block)] = fingerprints(block)
            done += len(block)
        tokens.flush()
        np.save(folder / "fingerprints.npy", np.unique(prints))

    folder = prepared(work.folder / "source", {"seed": work.seed}, work.rows * (2 * LENGTH + 8), write)
    tokens: np.ndarray = np.load(folder / "tokens.npy", mmap_mode="r")
    return tokens


def fingerprints(tokens: np.ndarray) -> np.ndarray:
    """A number per row that hardly any other row has: uint64 [n]."""
    weights = np.random.default_rng(0).integers(0, 1 << 63, LENGTH, dtype=np.uint64)
    prints: np.ndarray = (tokens.astype(np.uint64) * weights).sum(axis=1, dtype=np.uint64)
    return prints


def random_batches(work: Work) -> Iterator[np.ndarray]:
    """Row numbers of random batches, for ever.

    The permutation is drawn once, before the clock runs: a cost that is not charged to the methods that use it.
    """
    order = np.random.default_rng(work.seed).permutation(work.rows)
    while True:
        for start in range(0, work.rows - work.batch_size + 1, work.batch_size):
            yield order[start : start + work.batch_size]


def method(batches: Callable[[Work], Batches]) -> Callable[..., Iterator[int]]:
    """Make a generator of batches [n, LENGTH] a worker's function, which yields rows.

    The first batch is checked to hold rows of the source, and every batch is touched: one token of every row.
    """

    @functools.wraps(batches)
    def rows_read(folder: str, rows: int, batch_size: int, seed: int) -> Iterator[int]:
        work = Work(Path(folder), rows, batch_size, seed)
        checked = False
        for tokens in batches(work):
            if not checked:
                _check(tokens, work)
                checked = True
            if tokens[:, 0].min() < FIRST_WORD_ID:
                raise ValueError("a row begins with padding: what was read is not what was written")
            yield len(tokens)

    return rows_read


def _check(tokens: np.ndarray, work: Work) -> None:
    if tokens.dtype not in (np.int32, np.int64) or tokens.shape != (work.batch_size, LENGTH):
        raise ValueError(
            f"a batch of {tokens.dtype} {tokens.shape} is not [{work.batch_size}, {LENGTH}] of int32 or int64"
        )
    found = fingerprints(tokens)
    known = work.folder / "source" / "fingerprints.npy"
    if known.exists():
        prints = np.load(known, mmap_mode="r")
        if not (prints[np.searchsorted(prints, found).clip(max=len(prints) - 1)] == found).all():
            raise ValueError("a batch holds rows that were never written")
    if len(np.unique(found)) != len(found):
        raise ValueError("a batch holds the same row twice")
