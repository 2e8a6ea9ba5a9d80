"""Losses per row, class weights, and how scores become classes.

A loss returns one number per row, not a mean: the trainer divides by the weight of the whole global batch, of which
this rank holds a part only.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from engine.class_names import CLASS_NAMES as CLASS_NAMES
from engine.config import ModelConfig

POSITIVE_STARS = 4


def classes_of(stars: Tensor, classes: int) -> Tensor:
    """Class per row, int64: with two classes 1 from 4 stars on, with five the stars less one."""
    return (stars >= POSITIVE_STARS).long() if classes == 2 else stars.long() - 1


def class_counts(stars: Sequence[int], classes: int) -> list[int]:
    """Rows per class from rows per star (1 to 5)."""
    if classes == 2:
        return [sum(stars[: POSITIVE_STARS - 1]), sum(stars[POSITIVE_STARS - 1 :])]
    return list(stars)


class ReviewLoss:
    """The loss of a ModelConfig.

    Args:
        config: names the loss and the number of classes.
        class_weights: a number per class; None for equal weights.
    """

    def __init__(self, config: ModelConfig, class_weights: Sequence[float] | None = None) -> None:
        self.kind, self.classes = config.loss, config.classes
        self.class_weights = None if class_weights is None else list(class_weights)
        self._weights = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float64)

    def __call__(self, scores: Tensor, target_B: Tensor) -> Tensor:
        """Unweighted loss per row [B], for scores of ReviewModel and int64 classes."""
        scores = scores if scores.dtype == torch.float64 else scores.float()
        if self.kind == "cross_entropy":
            return functional.cross_entropy(scores, target_B, reduction="none")
        if self.kind == "bce":
            return functional.binary_cross_entropy_with_logits(scores, target_B.to(scores.dtype), reduction="none")
        return functional.mse_loss(scores, target_B.to(scores.dtype), reduction="none")

    def row_weights(self, target_B: Tensor) -> Tensor | None:
        """Weight per row [B], float64; None when all are 1."""
        if self._weights is None:
            return None
        self._weights = self._weights.to(target_B.device)  # moves at the first batch only
        return self._weights[target_B]

    def predict(self, scores: Tensor) -> Tensor:
        """Most probable class per row, int64 [B]."""
        if self.kind == "cross_entropy":
            return scores.argmax(dim=1)
        if self.kind == "bce":
            return (scores > 0).long()
        # mean squared error regresses on the class number itself; halves go up, as with stars
        return (scores.float() + 0.5).floor().clamp(0, self.classes - 1).long()

    def probabilities(self, scores: Tensor) -> Tensor | None:
        """Probability per class [B, C]; None for mean squared error, which has none."""
        if self.kind == "cross_entropy":
            return scores.softmax(dim=1)
        if self.kind == "bce":
            positive = torch.sigmoid(scores)
            return torch.stack((1 - positive, positive), dim=1)
        return None
