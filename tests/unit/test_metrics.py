"""Figures from counts."""

from __future__ import annotations

import numpy as np
import pytest

from engine.metrics import classification_figures, confusion_matrix


def test_known_figures():
    figures = classification_figures(np.array([[30, 10], [20, 140]]))
    assert figures["accuracy"] == pytest.approx(0.85)
    assert figures["precision"] == pytest.approx([0.6, 140 / 150])
    assert figures["recall"] == pytest.approx([0.75, 0.875])
    assert figures["macro_f1"] == pytest.approx((2 / 3 + 280 / 310) / 2)
    assert figures["null_accuracy"] == pytest.approx(0.8)
    assert figures["null_macro_f1"] == pytest.approx((0 + 320 / 360) / 2)
    assert figures["rows"] == 200


def test_summed_counts_give_the_figures_of_all_rows():
    rng = np.random.default_rng(3)
    target, predicted = rng.integers(0, 5, 400), rng.integers(0, 5, 400)
    whole = confusion_matrix(target, predicted, 5)
    assert whole.sum() == 400
    assert whole[2, 4] == ((target == 2) & (predicted == 4)).sum()
    parts = confusion_matrix(target[:90], predicted[:90], 5) + confusion_matrix(target[90:], predicted[90:], 5)
    assert np.array_equal(whole, parts)


def test_classes_that_do_not_occur_and_no_rows():
    assert classification_figures(np.array([[5, 0, 0], [0, 0, 0], [0, 0, 5]]))["macro_f1"] == 1.0
    assert classification_figures(np.zeros((2, 2)))["accuracy"] == 0.0
