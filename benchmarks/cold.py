"""Reading a whole compressed dataset that is not in the page cache, beside `dd` of the same files."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path
from statistics import median
from typing import Any

import engine
import native
from benchmarks.ours import dataset
from benchmarks.rows import Work, stored_bytes, stored_files

TRIALS = 3
"""of each, in turns: the median counts"""


def evict(folder: Path) -> None:
    """Drop a folder's files from the page cache, written out first; file systems in memory keep them."""
    for path in stored_files(folder):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def read_from_disk() -> int:
    """Bytes that this process has caused to be read from the disk itself."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("read_bytes:"))


def ours(folder: Path, batch_size: int, seed: int) -> tuple[float, float]:
    """Seconds of one epoch from an evicted dataset, and the part of its bytes that came from the disk."""
    with native.open_dataset(folder, "train") as data:
        plan = engine.Plan(layout=data.layout, batch_size=batch_size, seed=seed)
        evict(folder)
        before, rows = read_from_disk(), 0
        start = time.perf_counter()
        for batch in data.batches(plan, epochs=1):
            rows += len(batch)
        seconds = time.perf_counter() - start
        assert rows == len(data)
    return seconds, (read_from_disk() - before) / stored_bytes(folder / "train")


def dd(files: list[Path]) -> float:
    """Seconds that dd takes for them, one after the other."""
    start = time.perf_counter()
    for path in files:
        subprocess.run(["dd", f"if={path}", "of=/dev/null", "bs=1M", "status=none"], check=True)
    return time.perf_counter() - start


def cold(folder: str, rows: int, batch_size: int, seed: int) -> dict[str, Any]:
    """Stored megabytes a second of both, their ratio, and how much of it really came from the disk."""
    path = dataset(Work(Path(folder), rows, batch_size, seed))
    files, size = stored_files(path / "train"), stored_bytes(path / "train")
    trials: list[tuple[float, float]] = []
    copies = []
    for _ in range(TRIALS):
        trials.append(ours(path, batch_size, seed))
        evict(path)
        copies.append(dd(files))
    seconds, copied = median(trial[0] for trial in trials), median(copies)
    return {
        "ours_mb_per_second": size / 1e6 / seconds,
        "dd_mb_per_second": size / 1e6 / copied,
        "ratio": copied / seconds,
        "from_disk": min(trial[1] for trial in trials),
    }
