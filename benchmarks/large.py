"""Opening a dataset of 100 million rows, and finding any step in it.

The dataset has the format of any other, in as many parts, but few distinct chunks, each of rows that repeat: it takes
some 400 MB of disk rather than 17 GB. What opening and seeking cost depends on the number of chunks and parts alone.
Each measurement has a fresh process, and begins when everything is imported.
"""

from __future__ import annotations

import json
import random
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np

import engine
import native
from benchmarks.ours import writer_digest
from benchmarks.rows import LENGTH, WORDS, prepared, row_blocks, warm
from native.format import DIGEST_FIELDS, file_digest, group_name, json_digest
from native.hdf5 import read_hdf5_index
from native.index import write_index
from native.part_writer import DEFAULT_CHUNK_ROWS, Layout
from native.text import SPLITS

CHUNKS = 48_829
ROWS = CHUNKS * DEFAULT_CHUNK_ROWS
DISTINCT_CHUNKS = 4
DISTINCT_ROWS = 8
"""of a chunk, so that a chunk takes some kilobytes"""
PLACES = 20
BATCH_SIZE = 1024
DISK_BYTES = 500_000_000


def prepare(folder: str, seed: int) -> dict[str, Any]:
    """Write the dataset unless it is there; {"folder": where it is}."""
    recipe = {"seed": seed, "writer": writer_digest()}
    return {"folder": str(prepared(Path(folder) / "100m", recipe, DISK_BYTES, lambda path: _write(path, seed)))}


def _write(folder: Path, seed: int) -> None:
    rows = DISTINCT_CHUNKS * DEFAULT_CHUNK_ROWS
    vocabulary = [f"word{number}" for number in range(WORDS)]
    writer = native.DatasetWriter(folder, bounds=[LENGTH], rows={"train": [rows]}, vocabulary=vocabulary)
    columns = next(row_blocks(DISTINCT_CHUNKS * DISTINCT_ROWS, seed))
    repeats = DEFAULT_CHUNK_ROWS // DISTINCT_ROWS
    for first in range(0, len(columns[0]), DISTINCT_ROWS):
        few = [column[first : first + DISTINCT_ROWS] for column in columns]
        writer.write("train", 0, *(np.concatenate([column] * repeats) for column in few))
    counts = {"lines": ROWS, "kept": ROWS, "duplicates": 0, "empty": 0, "malformed": 0, "without_rating": 0}
    manifest = writer.finish(text={"max_length": LENGTH, "stop_words": []}, counts=counts)
    _multiply(folder, manifest)


def _multiply(folder: Path, manifest: dict[str, Any]) -> None:
    """Replace the training split by the parts of ROWS rows, and make the manifest say so."""
    few = folder / "train" / "few.h5"
    (folder / "train" / "part-00000.h5").rename(few)
    none = dict.fromkeys(SPLITS, (0,))
    layout = Layout((LENGTH,), none | {"train": (ROWS,)}, WORDS)
    parts = [part.rows[0] for part in layout.parts("train")]
    others = [part for part in manifest["parts"] if not part["path"].startswith("train/")]
    manifest["parts"] = []
    stars = np.zeros(5, np.int64)
    with h5py.File(few) as file:
        group = file[group_name(LENGTH)]
        chunk_tokens = group["lengths"][:].reshape(DISTINCT_CHUNKS, -1).sum(axis=1)
        chunk_stars = [np.bincount(chunk, minlength=6)[1:] for chunk in group["stars"][:].reshape(DISTINCT_CHUNKS, -1)]
        for number, rows in enumerate(parts):
            path = f"train/part-{number:05d}.h5"
            kinds = np.arange(rows // DEFAULT_CHUNK_ROWS) % DISTINCT_CHUNKS
            digest = _write_part(folder / path, group, kinds)
            entry = {"path": path, "rows": rows, "tokens": int(chunk_tokens[kinds].sum()), "index_digest": digest}
            manifest["parts"].append(entry | {"digest": file_digest(folder / path)})
            stars += np.array(chunk_stars)[kinds].sum(axis=0)
    few.unlink()
    manifest["parts"] += others
    manifest["splits"]["train"] = {"rows": ROWS, "bucket_rows": [ROWS], "stars": stars.tolist()}
    manifest["digest"] = json_digest({name: manifest[name] for name in DIGEST_FIELDS})
    (folder / "dataset.json").write_text(json.dumps(manifest))


def _write_part(path: Path, few: h5py.Group, kinds: np.ndarray) -> str:
    """One part of whole chunks, each a copy of one of the few as it is stored; returns its index digest."""
    rows = len(kinds) * DEFAULT_CHUNK_ROWS
    stored = [few["tokens"].id.read_direct_chunk((kind * DEFAULT_CHUNK_ROWS, 0)) for kind in range(DISTINCT_CHUNKS)]
    with h5py.File(path, "w", libver=("v110", "v110")) as file:
        group = file.create_group(group_name(LENGTH))
        space = h5py.h5s.create_simple((rows, LENGTH), (rows, LENGTH))
        like = few["tokens"].id
        tokens = h5py.h5d.create(group.id, b"tokens", like.get_type(), space, like.get_create_plist())
        for chunk, kind in enumerate(kinds):
            mask, data = stored[kind]
            tokens.write_direct_chunk((chunk * DEFAULT_CHUNK_ROWS, 0), data, mask)
        for name in ("lengths", "stars"):
            values = few[name][:].reshape(DISTINCT_CHUNKS, DEFAULT_CHUNK_ROWS)
            group.create_dataset(name, data=values[kinds].reshape(-1))
        for name in ("checksums", "row_checksums"):
            group.create_dataset(name, data=few[name][:][kinds])
    return write_index(path, read_hdf5_index(path, [LENGTH], DEFAULT_CHUNK_ROWS, "uint16"))


def _resident(field: str) -> int:
    """Bytes of resident memory: now (VmRSS), or at most so far (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def opening(folder: str) -> dict[str, float]:
    """Seconds that opening takes, and by how many megabytes resident memory grows at most meanwhile."""
    warm(Path(folder))
    open_dataset = native.open_dataset
    before = _resident("VmRSS")
    start = time.perf_counter()
    with open_dataset(folder, "train") as data:
        seconds = time.perf_counter() - start
        grown = _resident("VmHWM") - before
        rows = len(data)
    return {"seconds": seconds, "megabytes": grown / 1e6, "rows": rows}


def seeking(folder: str, seed: int) -> dict[str, float]:
    """Milliseconds from a random (epoch, step) to the row numbers of its batch: the worst of some."""
    draws = random.Random(seed)
    with native.open_dataset(folder, "train") as data:
        plan = engine.Plan(layout=data.layout, batch_size=BATCH_SIZE, seed=seed)
        taken = []
        for _ in range(PLACES):
            epoch, step = draws.randrange(1000), draws.randrange(plan.steps_per_epoch)
            start = time.perf_counter()
            rows = plan.rows(epoch, plan.batch(epoch, step))
            taken.append((time.perf_counter() - start) * 1e3)
            assert len(rows) == BATCH_SIZE or step == plan.steps_per_epoch - 1
    return {"milliseconds": max(taken), "median": sorted(taken)[PLACES // 2]}
