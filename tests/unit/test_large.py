"""Data larger than 32-bit offsets and larger than memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from pathlib import Path

import h5py
import numpy as np
import pytest
import xxhash

import native
from engine.plan import Plan
from native.format import group_name
from native.part_writer import LZ4_PLANES
from tests.synthetic import seal, write_dataset

BOUND, CHUNK_ROWS = 8192, 256


def test_more_than_four_billion_tokens(tmp_path):
    """A sparse file: rows of one bucket that were never written take no disk, and the next bucket lies behind them."""
    folder = tmp_path / "data"
    content = write_dataset(folder, bounds=(8, BOUND), rows={"train": (1000, 300)}, chunk_rows=CHUNK_ROWS)["train"]
    rows = (2**32 // BOUND // CHUNK_ROWS + 2) * CHUNK_ROWS + 5
    path = folder / "train/part-00000.h5"
    with h5py.File(path, "a") as file:
        for name in list(file[group_name(BOUND)]):
            del file[group_name(BOUND)][name]
    with h5py.File(path, "a") as file:  # opened again: what was freed before is not used again
        small, wide = file[group_name(8)], file[group_name(BOUND)]
        # Contiguous, allocated at once, never filled: the file system gives zeros for what was not written.
        properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        properties.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        properties.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        space = h5py.h5s.create_simple((rows, BOUND))
        h5py.h5d.create(wide.id, b"tokens", h5py.h5t.STD_U16LE, space, properties)
        tokens, lengths, stars = (column[:300] for column in content[1])
        wide["tokens"][rows - 300 :] = tokens
        wide["lengths"] = np.r_[np.ones(rows - 300), lengths].astype("<u2")
        wide["stars"] = np.r_[np.full(rows - 300, 3), stars].astype("u1")
        chunks = -(-rows // CHUNK_ROWS)
        empty = xxhash.xxh3_64_intdigest(bytes(CHUNK_ROWS * BOUND * 2))
        checksums = np.full(chunks, empty, "<u8")
        for chunk in range(chunks - 3, chunks):
            checksums[chunk] = xxhash.xxh3_64_intdigest(
                wide["tokens"][chunk * CHUNK_ROWS : (chunk + 1) * CHUNK_ROWS].tobytes()
            )
        wide["checksums"] = checksums
        parts = [slice(start, start + CHUNK_ROWS) for start in range(0, rows, CHUNK_ROWS)]
        sides = [wide["lengths"][part].tobytes() + wide["stars"][part].tobytes() for part in parts]
        wide["row_checksums"] = np.array([xxhash.xxh3_64_intdigest(side) for side in sides], "<u8")
        # The compressed bucket goes behind it: chunks at offsets beyond 32 bits.
        options = {"chunks": (CHUNK_ROWS, 8), "maxshape": (1024, 8), **LZ4_PLANES}
        small.create_dataset("behind", data=small["tokens"][:], **options)
        del small["tokens"]
        small.move("behind", "tokens")
        small["checksums"][:] = [
            xxhash.xxh3_64_intdigest(small["tokens"].id.read_direct_chunk((start, 0))[1])
            for start in range(0, 1000, CHUNK_ROWS)
        ]
        assert small["tokens"].id.get_chunk_info(0).byte_offset > 2**32
    manifest = json.loads((folder / "dataset.json").read_text())
    whole = 1000 + rows
    all_stars = np.r_[content[0][2], np.full(rows - 300, 3), stars]
    counted = np.bincount(all_stars, minlength=6)[1:].tolist()
    manifest["splits"]["train"] = {"rows": whole, "bucket_rows": [1000, rows], "stars": counted}
    manifest["parts"][0] |= {"rows": whole, "tokens": int(content[0][1].sum() + rows - 300 + lengths.sum())}
    (folder / "dataset.json").write_text(json.dumps(manifest))
    seal(folder, file_digests=False)
    assert path.stat().st_blocks * 512 < 1 << 30

    with native.open_dataset(folder) as data:
        assert data.layout[1].rows * BOUND > 2**32
        last = data.read_bucket(1, np.arange(rows - 300, rows))
        for found, column in zip((last.tokens, last.lengths, last.stars), content[1], strict=True):
            assert np.array_equal(found, column[:300])
        assert not data.read_bucket(1, np.array([0, rows // 2])).tokens.any()
        assert np.array_equal(data.read_bucket(0, np.arange(1000)).tokens, content[0][0])
        plan = Plan(layout=data.layout, batch_size=50, seed=1, window_bytes=1)
        end = plan.steps_per_epoch - 3
        for step, batch in zip(range(end, end + 3), data.batches(plan, step=end), strict=True):
            whole = plan.batch(0, step)
            assert np.array_equal(batch.tokens, data.read_bucket(whole.bucket, plan.rows(0, whole)).tokens)


MEMORY = Path("/sys/fs/cgroup/memory")
READ_ALL = """
import sys
import native
from engine.plan import Plan
data = native.open_dataset(sys.argv[1])
plan = Plan(layout=data.layout, batch_size=256, seed=1, window_bytes=8 << 20)
print(sum(int(batch.lengths.sum()) for batch in data.batches(plan)))
"""


@pytest.mark.skipif(
    not os.access(MEMORY, os.W_OK), reason="needs root and a memory cgroup (version 1), to limit a process's memory"
)
def test_data_ten_times_larger_than_memory(tmp_path):
    """In a group that may use 100 MiB, page cache included, an epoch over 1 GiB ends with every row read."""
    folder, limit, rows = tmp_path / "data", 100 << 20, 10 * (100 << 20) // 512
    writer = native.DatasetWriter(
        folder, bounds=[256], rows={"train": [rows]}, vocabulary=[str(i) for i in range(9_000)], compress=False
    )
    total = 0
    for start in range(0, rows, 8192):
        count = min(8192, rows - start)
        rng = np.random.default_rng(start)
        tokens = rng.integers(2, 9_000, (count, 256), np.uint16)
        lengths = rng.integers(200, 257, count)
        tokens[np.arange(256) >= lengths[:, None]] = 0
        total += int(lengths.sum())
        writer.write("train", 0, tokens, lengths, np.full(count, 5))
    counts = {"lines": rows, "kept": rows, "duplicates": 0, "empty": 0, "malformed": 0, "without_rating": 0}
    writer.finish(text={"max_length": 256, "stop_words": []}, counts=counts)
    group = MEMORY / f"engine-test-{uuid.uuid4().hex[:8]}"
    group.mkdir()
    try:
        (group / "memory.limit_in_bytes").write_text(str(limit))
        result = subprocess.run(
            [
                "bash",
                "-c",
                'echo $$ > "$0/cgroup.procs"; exec "$@"',
                str(group),
                sys.executable,
                "-c",
                READ_ALL,
                folder,
            ],
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        most = int((group / "memory.max_usage_in_bytes").read_text())
    finally:
        group.rmdir()
    assert result.stdout.strip() == str(total), result.stderr
    assert most <= limit
