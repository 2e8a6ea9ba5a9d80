"""Figures of a classifier from its confusion matrix: counts are summed over ranks, figures come last."""

from __future__ import annotations

from typing import Any

import numpy as np


def confusion_matrix(target: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """Counts [true class, predicted class], int64."""
    return np.bincount(target * classes + predicted, minlength=classes * classes).reshape(classes, classes)


def classification_figures(confusion: np.ndarray) -> dict[str, Any]:
    """Accuracy, macro-F1, precision, recall and F1 per class, and the same of the null classifier.

    The null classifier always answers the most frequent true class. A class that neither occurs nor is answered is
    left out of macro-F1; 0/0 counts as 0.

    Args:
        confusion: counts [true class, predicted class].
    """
    confusion = np.asarray(confusion, dtype=np.int64)
    rows = int(confusion.sum())
    null = np.zeros_like(confusion)
    null[:, int(confusion.sum(axis=1).argmax())] = confusion.sum(axis=1)
    precision, recall, f1, macro_f1 = _per_class(confusion)
    return {
        "accuracy": float(np.trace(confusion)) / rows if rows else 0.0,
        "macro_f1": macro_f1,
        "null_accuracy": float(np.trace(null)) / rows if rows else 0.0,
        "null_macro_f1": _per_class(null)[3],
        "precision": precision,
        "recall": recall,
        "f1": f1,
        "confusion": confusion.tolist(),
        "rows": rows,
    }


def _per_class(confusion: np.ndarray) -> tuple[list[float], list[float], list[float], float]:
    hits = np.diag(confusion).astype(float)
    answered, true = confusion.sum(axis=0), confusion.sum(axis=1)
    precision = np.divide(hits, answered, out=np.zeros_like(hits), where=answered > 0)
    recall = np.divide(hits, true, out=np.zeros_like(hits), where=true > 0)
    f1 = np.divide(2 * hits, answered + true, out=np.zeros_like(hits), where=answered + true > 0)
    present = answered + true > 0
    return precision.tolist(), recall.tolist(), f1.tolist(), float(f1[present].mean()) if present.any() else 0.0
