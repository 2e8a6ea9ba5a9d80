"""What verifying the stored chunks costs: XXH3 of exactly the bytes that an epoch reads, as a part of the epoch's time.

The reader has no switch that leaves the checksum out, so both are timed by themselves, in turns: an epoch through the
batch stream, in shuffle windows so small that every chunk is decoded, and XXH3 over the same chunks' stored bytes and
their lengths and stars, each read into the same buffer just before, as the reader does. Times are the process's time on
the CPU, its threads together: with a warm cache reading waits for nothing else, and other processes do not show in it.
It is the very function that the reader calls; calling it from Python is counted as its cost, so the part comes out a
little too high.
"""

from __future__ import annotations

import ctypes
import os
import time
from pathlib import Path
from statistics import median

import engine
import native
from benchmarks.ours import dataset
from benchmarks.rows import Work, warm
from native.codecs import load_codecs
from native.stream import BatchStream

TRIALS = 7
"""of each, in turns: the medians count"""
WINDOW_BYTES = 8 << 20


def epoch(data: native.Dataset, plan: engine.Plan) -> tuple[float, int]:
    """Seconds on the CPU of an epoch, and the chunks decoded in it."""
    with BatchStream(data, plan, 1) as stream:
        start = time.process_time()
        for step in range(plan.steps_per_epoch):
            stream.submit(0, step, 0, plan.batch_size)
            if stream.waiting == stream.ahead + 1:
                stream.take()
        while stream.waiting:
            stream.take()
        return time.process_time() - start, stream.chunks_decoded


def checksums(data: native.Dataset) -> float:
    """Seconds on the CPU that XXH3 takes over all chunks' bytes as stored, and over their lengths and stars."""
    codecs, index = load_codecs(), data.parts.index
    assert codecs is not None, "without the native codecs libhdf5 reads"
    xxh3 = ctypes.CFUNCTYPE(ctypes.c_uint64, ctypes.c_void_p, ctypes.c_size_t)(codecs.xxh3_64bits)
    memory = bytearray(int(index["size"].max()) + 3 * data.chunk_rows)
    buffer, place = memoryview(memory), ctypes.addressof(ctypes.c_char.from_buffer(memory))
    total, left = 0.0, len(data)
    columns = (index[name].tolist() for name in ("descriptor", "offset", "size", "lengths_offset", "stars_offset"))
    for descriptor, offset, size, lengths, stars in zip(*columns, strict=True):
        rows = min(data.chunk_rows, left)
        left -= rows
        chunk, sides = buffer[:size], buffer[size : size + 3 * rows]
        for piece, at in ((chunk, offset), (sides[: 2 * rows], lengths), (sides[2 * rows :], stars)):
            assert os.preadv(descriptor, [piece], at) == len(piece)
        start = time.process_time()
        xxh3(place, size)
        xxh3(place + size, 3 * rows)
        total += time.process_time() - start
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
