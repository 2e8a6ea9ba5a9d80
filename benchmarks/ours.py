"""This project's reader as a user calls it, and the memcpy that it is measured against."""

from __future__ import annotations

import ctypes
import hashlib
from functools import partial
from pathlib import Path

import numpy as np

import engine
import native
from benchmarks.rows import LENGTH, WORDS, Batches, Work, method, prepared, row_blocks, source, warm

EVER = 1 << 40
"""epochs that no measurement comes to the end of"""
WARM_ROWS = 4_000_000
"""rows read before the clock runs: enough to take the memory of all decoded windows"""
COPIED_BYTES = 256 << 20
"""finished batches that memcpy takes in turn: far more than caches hold"""
RING = 4
"""buffers that they are copied into in turn: few, which is in memcpy's favour"""


def write_dataset(folder: Path, rows: int, seed: int, compress: bool) -> None:
    """Write the rows as one bucket of a dataset's training split."""
    writer = native.DatasetWriter(
        folder,
        bounds=[LENGTH],
        rows={"train": [rows]},
        vocabulary=[f"word{number}" for number in range(WORDS)],
        compress=compress,
    )
    for tokens, lengths, stars in row_blocks(rows, seed):
        writer.write("train", 0, tokens, lengths, stars)
    others = {"duplicates": 0, "empty": 0, "malformed": 0, "without_rating": 0}
    writer.finish(text={"max_length": LENGTH, "stop_words": []}, counts={"lines": rows, "kept": rows, **others})


def writer_digest() -> str:
    """Changes with the code that writes datasets, which are then written again."""
    package = Path(native.__file__).parent
    sources = [(package / name).read_bytes() for name in ("writer.py", "format.py", "hdf5.py", "index.py")]
    return hashlib.sha256(b"".join(sources)).hexdigest()


def dataset(work: Work, *, compress: bool = True) -> Path:
    """The dataset of this many rows, written when it is missing or its writer has changed."""
    recipe = {"seed": work.seed, "writer": writer_digest()}
    write = partial(write_dataset, rows=work.rows, seed=work.seed, compress=compress)
    return prepared(work.folder / ("ours_lz4" if compress else "ours_uncompressed"), recipe, work.rows * 220, write)


def _batches(work: Work, folder: Path) -> Batches:
    warm(folder)
    data = native.open_dataset(folder, "train")
    plan = engine.Plan(layout=data.layout, batch_size=work.batch_size, seed=work.seed)
    stream = data.batches(plan, epochs=EVER)
    for _ in range(WARM_ROWS // work.batch_size):
        next(stream)
    for batch in stream:
        if len(batch) == work.batch_size:  # an epoch ends with a shorter one
            yield batch.tokens


@method
def lz4(work: Work) -> Batches:
    """Chunks in LZ4, verified, shuffled by windows, read ahead into reused buffers: int32."""
    yield from _batches(work, dataset(work))


@method
def uncompressed(work: Work) -> Batches:
    """The same, stored as they are."""
    yield from _batches(work, dataset(work, compress=False))


def _copies(work: Work, dtype: type) -> Batches:
    """Finished batches, copied one after the other into a ring of reused buffers."""
    shape = work.batch_size, LENGTH
    size = work.batch_size * LENGTH * np.dtype(dtype).itemsize
    tokens = source(work)
    finished: np.ndarray = np.empty((-(-COPIED_BYTES // size), *shape), dtype)
    for number in range(len(finished)):
        start = number * work.batch_size % (work.rows - work.batch_size + 1)
        finished[number] = tokens[start : start + work.batch_size]
    ring: np.ndarray = np.ones((RING, *shape), dtype)
    at, into = finished.ctypes.data, ring.ctypes.data
    number = 0
    while True:
        slot = number % RING
        ctypes.memmove(into + slot * size, at + number % len(finished) * size, size)
        yield ring[slot]
        number += 1


@method
def memcpy_int64(work: Work) -> Batches:
    """The limit: what a reader must at least do, were its batches finished already."""
    yield from _copies(work, np.int64)


@method
def memcpy_int32(work: Work) -> Batches:
    """The same in the type that the reader hands out."""
    yield from _copies(work, np.int32)
