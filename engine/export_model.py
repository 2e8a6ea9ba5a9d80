"""A trained model as one file that torch or onnxruntime runs without this project, and a check that it is the same.

What is exported is the model's forward(tokens, lengths) as it is, whatever layers it has, and behind it how scores
become labels and probabilities.

Shapes: B texts, L words of the longest, C classes.
"""

from __future__ import annotations

import copy
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from engine.errors import TrainingError
from engine.losses import ReviewLoss
from engine.saved_model import SavedModel

FORMATS = {"torchscript": "model.pt", "onnx": "model.onnx"}
OPSET = 17
"""of ONNX: read by onnxruntime from 1.12 (2022) on"""
INPUTS, OUTPUTS = ["tokens", "lengths"], ["labels", "values"]


class Judge(nn.Module):
    """A model and how its scores are read.

    Args:
        model: scores of tokens and lengths.
        loss: knows how scores become classes.
    """

    def __init__(self, model: nn.Module, loss: ReviewLoss) -> None:
        super().__init__()
        self.model, self._loss = model, loss

    def forward(self, tokens_BL: Tensor, lengths_B: Tensor) -> tuple[Tensor, Tensor]:
        """Labels int64 [B], and probabilities [B, C] or, of a model without any, the number that it gives [B]."""
        scores = self.model(tokens_BL, lengths_B)
        probabilities = self._loss.probabilities(scores)
        return self._loss.predict(scores), scores if probabilities is None else probabilities


def export_model(saved: SavedModel, kind: str, folder: Path) -> Path:
    """Write the model into the folder; returns the file's path.

    Args:
        saved: on the CPU.
        kind: of FORMATS.
        folder: exists.

    Raises:
        TrainingError: the model does what ONNX has no word for.
    """
    path = folder / FORMATS[kind]
    # onnxruntime has no recurrent kernels for float64.
    model = copy.deepcopy(saved.model).float() if kind == "onnx" else saved.model
    judge = Judge(model, saved.loss).eval()
    # Two rows of different lengths: what depends on a text's length or on its neighbours must be seen in the trace.
    example = (torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]]), torch.tensor([5, 2]))
    with warnings.catch_warnings(), torch.no_grad():
        # That tracing is on its way out, and that shapes which are the same for every text are taken as constants.
        warnings.simplefilter("ignore")
        if kind == "torchscript":
            torch.jit.save(torch.jit.trace(judge, example, check_trace=False), str(path))
        else:
            _export_onnx(judge, example, path)
    return path


def _export_onnx(judge: Judge, example: tuple[Tensor, Tensor], path: Path) -> None:
    axes = {"tokens": {0: "texts", 1: "words"}, "lengths": {0: "texts"}, "labels": {0: "texts"}, "values": {0: "texts"}}
    try:
        with _silent_output():
            torch.onnx.export(
                judge,
                example,
                str(path),
                dynamo=False,
                input_names=INPUTS,
                output_names=OUTPUTS,
                dynamic_axes=axes,
                opset_version=OPSET,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        reason = " ".join(str(error).split()).partition(" [Caused by")[0]
        raise TrainingError(f"this model cannot become ONNX ({reason}); take --format torchscript") from None


@contextmanager
def _silent_output() -> Iterator[None]:
    """Nothing is printed: where torch fails, its C++ side writes out the whole graph, whatever it is told."""
    sys.stdout.flush()
    kept, nothing = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nothing)
