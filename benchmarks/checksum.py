"""What verifying the stored chunks costs: XXH3 of exactly the bytes that an epoch reads, as a part of the epoch's time.

The reader has no switch that leaves the checksum out, so both are timed by themselves, in turns: an epoch through the
batch stream, in shuffle windows so small that every chunk is decoded, and XXH3 over the same chunks' stored bytes and
their lengths and stars, each read into the same buffer just before, as the reader does. Calling XXH3 from Python is
counted as its cost, so the part comes out a little too high.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from statistics import median

import xxhash

import engine
import native
from benchmarks.ours import dataset
from benchmarks.rows import Work, warm
from native.stream import BatchStream

TRIALS = 7
"""of each, in turns: the medians count"""
WINDOW_BYTES = 8 << 20


def epoch(data: native.Dataset, plan: engine.Plan) -> tuple[float, int]:
    """Seconds of an epoch, and the chunks decoded in it."""
    with BatchStream(data, plan, 1) as stream:
        start = time.perf_counter()
        for step in range(plan.steps_per_epoch):
            stream.submit(0, step, 0, plan.batch_size)
            if stream.waiting == stream.ahead + 1:
                stream.take()
        while stream.waiting:
            stream.take()
        return time.perf_counter() - start, stream.chunks_decoded


def checksums(data: native.Dataset) -> float:
    """Seconds that XXH3 takes over all chunks' bytes as stored, and over their lengths and stars."""
    index = data.parts.index
    buffer = memoryview(bytearray(int(index["size"].max()) + 3 * data.chunk_rows))
    total, left = 0.0, len(data)
    columns = (index[name].tolist() for name in ("descriptor", "offset", "size", "lengths_offset", "stars_offset"))
    for descriptor, offset, size, lengths, stars in zip(*columns, strict=True):
        rows = min(data.chunk_rows, left)
        left -= rows
        chunk, sides = buffer[:size], buffer[size : size + 3 * rows]
        for piece, at in ((chunk, offset), (sides[: 2 * rows], lengths), (sides[2 * rows :], stars)):
            assert os.preadv(descriptor, [piece], at) == len(piece)
        start = time.perf_counter()
        xxhash.xxh3_64_intdigest(chunk)
        xxhash.xxh3_64_intdigest(sides)
        total += time.perf_counter() - start
    return total


def checksum(folder: str, rows: int, batch_size: int, seed: int) -> dict[str, float]:
    """The part of reading's time that the checksums take, and both in microseconds a chunk."""
    path = dataset(Work(Path(folder), rows, batch_size, seed))
    warm(path)
    with native.open_dataset(path, "train") as data:
        plan = engine.Plan(layout=data.layout, batch_size=batch_size, seed=seed, window_bytes=WINDOW_BYTES)
        epoch(data, plan)
        chunks = len(data.parts.index["size"])
        trials = [(epoch(data, plan), checksums(data)) for _ in range(TRIALS)]
    reading = median(seconds / decoded for (seconds, decoded), _ in trials)
    verifying = median(seconds for _, seconds in trials) / chunks
    return {
        "part": verifying / reading,
        "reading_microseconds": reading * 1e6,
        "checksum_microseconds": verifying * 1e6,
        "decoded_per_chunk": median(decoded for (_, decoded), _ in trials) / chunks,
    }
