"""A trained model out of a checkpoint: for evaluate and predict, without Horovod or MPI."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from engine.checkpoint import load_checkpoint
from engine.config import ModelConfig
from engine.errors import CheckpointError
from engine.losses import ReviewLoss
from engine.model import ReviewModel
from engine.precision import weight_type


@dataclass(frozen=True)
class SavedModel:
    """A model in evaluation mode, whose weights ask for no gradients, with what belongs to it."""

    model: ReviewModel
    loss: ReviewLoss
    config: ModelConfig
    vocabulary: list[str]
    """the words, that of id i + 2 at entry i"""
    text: dict[str, Any]
    """text settings of the dataset it was trained on"""
    vocabulary_bytes: bytes


def load_model(path: Path, device: str = "cpu") -> SavedModel:
    """Load the model of a checkpoint.

    Raises:
        CheckpointError: missing, damaged, or not of the reference model.
    """
    checkpoint = load_checkpoint(path)
    try:
        values = checkpoint.values
        config = ModelConfig.from_json(values["config"]["model"])
        model = ReviewModel(config, values["ids"])
        model.to(weight_type(values["config"]["precision"]))
        model.load_state_dict(checkpoint.part("average") or checkpoint.part("model"))
        words = checkpoint.tensors["vocabulary"].numpy().tobytes()
        text, weights = dict(values["text"]), values["class_weights"]
        loss = ReviewLoss(config, weights)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path}: not a checkpoint of this model ({' '.join(str(error).split())})") from None
    model.to(torch.device(device)).eval().requires_grad_(False)
    return SavedModel(model, loss, config, words.decode().split("\n")[:-1], text, words)
