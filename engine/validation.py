"""Measuring a model on a split: each rank counts its slices, the counts are summed, figures come last."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from engine.input import Prefetcher, ReviewSource
from engine.losses import ReviewLoss, classes_of
from engine.metrics import classification_figures, confusion_matrix
from engine.plan import Plan
from native.dataset import Dataset


def measure(
    model: nn.Module,
    loss: ReviewLoss,
    data: Dataset,
    batch_size: int,
    device: torch.device,
    *,
    rank: int = 0,
    shares: Sequence[int] | None = None,
    sum_over_ranks: Callable[[np.ndarray], np.ndarray] | None = None,
) -> dict[str, Any]:
    """Loss and classification figures of a model on a whole split.

    Args:
        model, loss: as trained; the model is put into evaluation mode, and back.
        data: the opened split.
        batch_size: rows of a global batch.
        rank, shares, sum_over_ranks: this rank, all ranks' rows of a batch and the sum of a float64 array over
            them; left out for a single process.

    Returns:
        loss (mean of the weighted loss), accuracy, macro_f1, null_accuracy, confusion, rows, ...
    """
    classes = loss.classes
    plan = Plan(layout=data.layout, batch_size=batch_size, seed=0, shuffle=False)
    source = ReviewSource(data, plan, partial(classes_of, classes=classes), device)
    batches = Prefetcher(plan, source, rank, [tuple(shares or (batch_size,))], epoch=0, step=0, epochs=1, device=device)
    totals = np.zeros(2 + classes * classes)
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            for _ in range(plan.steps_per_epoch):
                batch = batches.next()
                batch.hand_over()
                if batch.rows:
                    totals += _count(model, loss, batch.inputs, batch.target)
    finally:
        batches.close()
        model.train(was_training)
    if sum_over_ranks is not None:
        totals = sum_over_ranks(totals)
    figures = classification_figures(totals[2:].reshape(classes, classes).astype(np.int64))
    return {"loss": float(totals[0] / totals[1]) if totals[1] else float("nan"), **figures}


def _count(model: nn.Module, loss: ReviewLoss, inputs: tuple[Any, ...], target: torch.Tensor) -> np.ndarray:
    scores = model(*inputs)
    losses, weights = loss(scores, target).double(), loss.row_weights(target)
    weight = float(weights.sum()) if weights is not None else float(len(target))
    total = float((losses * weights).sum() if weights is not None else losses.sum())
    counts = confusion_matrix(target.cpu().numpy(), loss.predict(scores).cpu().numpy(), loss.classes)
    return np.concatenate(([total, weight], counts.ravel().astype(float)))
