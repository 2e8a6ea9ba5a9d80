"""Runs a model that was exported to ONNX."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import onnxruntime


def open_model(folder: Path) -> Callable[[list[list[int]], list[int]], tuple[list[int], list[Any]]]:
    """The model as a function: padded rows of word numbers and their lengths in, labels and probabilities out."""
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])

    def run(rows: list[list[int]], lengths: list[int]) -> tuple[list[int], list[Any]]:
        given = {"tokens": numpy.array(rows, numpy.int64), "lengths": numpy.array(lengths, numpy.int64)}
        labels, values = session.run(None, given)
        return labels.tolist(), values.tolist()

    return run
