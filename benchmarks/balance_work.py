"""The work that benchmarks.balance measures: rows, model and optimizer, the same for every method and for a rank alone.

Rows of 100 token ids in fixed length, or of three lengths in equal numbers; ids fall in frequency by Zipf-Mandelbrot's
law (benchmarks.rows), which decides how many rows of the embedding a batch touches.
"""

from __future__ import annotations

import json
import os
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

import engine
import engine.environment
import native
from benchmarks.ours import writer_digest
from benchmarks.rows import LENGTH, WORDS, prepared, row_blocks
from engine.config import ModelConfig
from engine.losses import ReviewLoss
from engine.model import ReviewModel

MODEL = ModelConfig(embedding_size=100, hidden_size=32, layers=2, directions=1, pooling="max", ngrams=0, dropout=0.0)
CLIP_NORM = 1.0
SEED = 7
FIXED = (LENGTH,)
VARYING = (32, 64, LENGTH)
TEXT = "LSTM 100/32/2, one direction, no dropout, fused Adam, norm clipped at 1; 10,002 ids by Zipf-Mandelbrot's law"


def write_dataset(folder: Path, rows: int, bounds: tuple[int, ...]) -> None:
    """Write so many rows of every length as a training split."""
    writer = native.DatasetWriter(
        folder, bounds=bounds, rows={"train": [rows] * len(bounds)}, vocabulary=[f"word{n}" for n in range(WORDS)]
    )
    for bucket, bound in enumerate(bounds):
        for tokens, lengths, stars in row_blocks(rows, SEED + bucket):
            # A row that is full in its bucket or misses as few words as in the longest.
            cut = np.maximum(1, bound - (LENGTH - lengths.astype(np.int64)) * bound // LENGTH).astype(np.uint16)
            kept = tokens[:, :bound].copy()
            kept[np.arange(bound) >= cut[:, None]] = 0
            writer.write("train", bucket, kept, cut, stars)
    kept_rows = rows * len(bounds)
    others = {"duplicates": 0, "empty": 0, "malformed": 0, "without_rating": 0}
    writer.finish(
        text={"max_length": LENGTH, "stop_words": []}, counts={"lines": kept_rows, "kept": kept_rows, **others}
    )


def dataset(workdir: Path, rows: int, bounds: tuple[int, ...]) -> Path:
    """The dataset, written when it is missing or its writer has changed."""
    name = "-".join(map(str, (rows, *bounds)))
    write = partial(write_dataset, rows=rows, bounds=bounds)
    return prepared(workdir / name, {"writer": writer_digest()}, rows * len(bounds) * 220, write)


def settle() -> None:
    """One thread, and the memory settings that a training run has."""
    torch.set_num_threads(1)
    getattr(engine.environment, "keep_memory", lambda: None)()


def make(ids: int) -> tuple[ReviewModel, ReviewLoss, torch.optim.Optimizer]:
    """A model with its loss and optimizer, the same at every call."""
    torch.manual_seed(SEED)
    model = ReviewModel(MODEL, ids)
    return model, ReviewLoss(MODEL), torch.optim.Adam(model.parameters(), lr=0.002, fused=True)  # as engine.train does


def put(path: Path, value: Any) -> None:
    """Write a JSON file that others wait for: it appears whole or not at all."""
    draft = path.with_name(f"{path.name}.{os.getpid()}")
    draft.write_text(json.dumps(value))
    draft.rename(path)


def get(path: Path, seconds: float) -> Any:
    """Wait for such a file and read it.

    Raises:
        TimeoutError: it did not come in time.
    """
    limit = time.monotonic() + seconds
    while not path.exists():
        if time.monotonic() > limit:
            raise TimeoutError(f"{path.name} did not come within {seconds:.0f} s")
        time.sleep(0.02)
    return json.loads(path.read_text())
