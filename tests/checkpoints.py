"""Checkpoints of untrained models, as engine.train writes them; for tests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from engine.checkpoint import Checkpoint, save_checkpoint
from engine.config import ModelConfig, TrainConfig
from engine.model import ReviewModel
from engine.precision import weight_type

WORDS = ("the", "not", "good", "bad", "it's", "caf\u00e9", "\U0001f600", "refund", "great", "x2", "\u4e2d\u6587")


def write_checkpoint(
    path: Path,
    config: ModelConfig,
    *,
    words: Sequence[str] = WORDS,
    max_length: int = 40,
    stop_words: Sequence[str] = (),
    precision: str = "float32",
    spread: float = 3.0,
    seed: int = 1,
) -> Path:
    """Write a model with random weights.

    Args:
        path: of the file.
        config: of the model.
        words: the vocabulary.
        max_length: words of a text that are read.
        stop_words: those that are left out.
        precision: as --precision.
        spread: factor of the initial weights, so that the answers are not all alike.
        seed: of the weights.
    """
    torch.manual_seed(seed)
    model = ReviewModel(config, len(words) + 2).to(weight_type(precision))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(spread)
        scores = model(torch.randint(1, len(words) + 2, (200, 9)), torch.arange(200) % 9 + 1)
        middle = (config.classes - 1) / 2 if config.loss == "mse" else 0.0
        model.head.bias -= scores.median(dim=0).values - middle  # every class is somebody's
    values = {
        "config": TrainConfig(data="data", out="run", model=config, precision=precision).to_json(),
        "class_weights": None,
        "text": {"max_length": max_length, "stop_words": list(stop_words)},
        "ids": len(words) + 2,
    }
    tensors = {f"model/{name}": tensor for name, tensor in model.state_dict().items()}
    content = "".join(word + "\n" for word in words).encode()
    tensors["vocabulary"] = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    save_checkpoint(path, Checkpoint(tensors, values))
    return path
