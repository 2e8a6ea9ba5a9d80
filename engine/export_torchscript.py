"""Runs a model that was exported for torch."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def open_model(folder: Path) -> Callable[[list[list[int]], list[int]], tuple[list[int], list[Any]]]:
    """The model as a function: padded rows of word numbers and their lengths in, labels and probabilities out."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch wishes for a successor that takes no GRU yet
        model = torch.jit.load(str(folder / "model.pt"), map_location="cpu")

    def run(rows: list[list[int]], lengths: list[int]) -> tuple[list[int], list[Any]]:
        with torch.inference_mode():
            labels, values = model(torch.tensor(rows), torch.tensor(lengths))
        return labels.tolist(), values.tolist()

    return run
