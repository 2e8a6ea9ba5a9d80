"""Fits of a rank's cost by least squares of relative errors, and curves that do not fall. Pure.

Shapes: P points of a profile, R ranks, F features.
"""

from __future__ import annotations

from itertools import combinations

import numpy as np

Curve = tuple[np.ndarray, np.ndarray]
"""ascending padded timesteps, and the seconds that they take"""
EARNED = 0.98
"""a parameter more must lower the loss to this part of it"""


def fit_relative(x_PF: np.ndarray, seconds_P: np.ndarray, grows: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Parameters of at least 0 that minimise the relative squared errors, robustly.

    Every subset of the features is tried: with so few, that is the whole of non-negative least squares. Residuals are
    weighted anew (iteratively reweighted least squares; Holland and Welsch, 1977, with Cauchy's weights), those above
    the fit only: a disturbance adds time and never takes any off.

    Args:
        x_PF: features.
        seconds_P: what was timed.
        grows: features of which one at least must be in it: more rows take longer.

    Returns:
        The parameters [F], and what the fit is off at each point, as a part of what was timed [P].
    """
    features = x_PF.shape[1]
    relative_PF = x_PF / seconds_P[:, None]
    weight_P = np.ones(len(seconds_P))
    best = np.zeros(features)
    # Of subsets of one size the last feature goes first: what grows with rows and length explains most.
    subsets = [
        list(subset)
        for size in range(1, features + 1)
        for subset in combinations(reversed(range(features)), size)
        if set(grows) & set(subset)
    ]
    for _ in range(8):
        least = np.inf
        for subset in subsets:
            part_PF = relative_PF[:, subset] * np.sqrt(weight_P)[:, None]
            found = np.linalg.lstsq(part_PF, np.sqrt(weight_P), rcond=None)[0]
            if (found < 0).any():
                continue
            theta_F = np.zeros(features)
            theta_F[subset] = found
            loss = float((weight_P * (relative_PF @ theta_F - 1) ** 2).sum())
            if loss < least * EARNED - 1e-12:
                best, least = theta_F, loss
        off_P = relative_PF @ best - 1
        scale = max(2 * float(np.median(np.abs(off_P))), 1e-3)
        weight_P = np.where(off_P < 0, 1 / (1 + (off_P / scale) ** 2), 1.0)
    return best, relative_PF @ best - 1


def has_cliff(x_P: np.ndarray, off_P: np.ndarray, misfit: float) -> bool:
    """Whether the points off a line are those of most work, two at least, and all of these: a cliff, no disturbance."""
    above_P = off_P < -misfit
    return bool(above_P.sum() > 1 and above_P[x_P >= x_P[above_P].min()].all() and not above_P.all())


def fit_held(
    matrix_RFF: np.ndarray,
    vector_RF: np.ndarray,
    expected_RF: np.ndarray,
    current_RF: np.ndarray,
    surprise_R: np.ndarray,
    strength: float,
) -> np.ndarray:
    """Least squares of relative errors per rank, held to an expected shape by ridge regression, none below 0.

    Where the data tell the level only, the shape stays as expected.

    Args:
        matrix_RFF: sums of the outer products of the features over the seconds.
        vector_RF: sums of the features over the seconds.
        expected_RF: the expected parameters, up to a common factor.
        current_RF: the parameters so far; what they predict is the measure of a step.
        surprise_R: what a parameter that was not expected may easily add to a step, as a part of it.
        strength: of the ridge, in timed steps per parameter.

    Returns:
        The parameters [R, F]; those of a rank without data mean nothing.
    """
    is_expected_RF = (expected_RF > 0).astype(float)
    # What a parameter of 1 adds to a step, relative to the step.
    weight_R = np.maximum(np.einsum("rfg,rf,rg->r", matrix_RFF, current_RF, current_RF), 1e-300)
    typical_RF = np.einsum("rfg,rg->rf", matrix_RFF, current_RF) / weight_R[:, None]
    unit_RF = np.where(expected_RF > 0, expected_RF, surprise_R[:, None] / np.maximum(typical_RF, 1e-300))
    unit_RF = np.where(typical_RF > 0, unit_RF, 0.0)
    theta_RF = np.zeros_like(unit_RF)
    for _ in range(unit_RF.shape[1]):
        matrix = matrix_RFF * unit_RF[:, :, None] * unit_RF[:, None, :]
        vector_RF_ = vector_RF * unit_RF
        level_R = np.einsum("rf,rf->r", vector_RF_, is_expected_RF)
        level_R /= np.maximum(np.einsum("rfg,rf,rg->r", matrix, is_expected_RF, is_expected_RF), 1e-300)
        matrix = matrix + strength * np.eye(unit_RF.shape[1])
        vector_RF_ = vector_RF_ + strength * level_R[:, None] * is_expected_RF
        found_RF = np.linalg.solve(matrix, vector_RF_[:, :, None])[:, :, 0]
        theta_RF = np.maximum(found_RF, 0.0) * unit_RF
        below = (found_RF < 0) & (unit_RF > 0)
        if not below.any():
            break
        unit_RF = np.where(below, 0.0, unit_RF)  # held at 0, and the others are fitted anew
    # The ridge holds the level back too: it is fitted once more.
    predicted_R = np.einsum("rf,rf->r", vector_RF, theta_RF)
    square_R = np.einsum("rfg,rf,rg->r", matrix_RFF, theta_RF, theta_RF)
    fitted_RF: np.ndarray = theta_RF * (predicted_R / np.maximum(square_R, 1e-300))[:, None]
    return fitted_RF


def monotone(x_P: np.ndarray, seconds_P: np.ndarray) -> Curve:
    """A curve that does not fall, through what is left when every disturbance is taken off that shows as one.

    A disturbance only ever adds time, and less work never takes more: a point above a later one is lowered to it.
    """
    xs = np.unique(x_P)
    least = np.array([seconds_P[x_P == x].mean() for x in xs])
    return xs, np.minimum.accumulate(least[::-1])[::-1]


def along(curve: Curve, x: np.ndarray) -> np.ndarray:
    """The curve's value, never below 0. Before its first point it goes on as it begins.

    Beyond the last it rises as steeply as its last piece or as the whole of it, whichever is more: two points that
    happen to lie level are no sign of work that costs nothing.
    """
    xs, values = curve
    last = max((values[-1] - values[-2]) / (xs[-1] - xs[-2]), (values[-1] - values[0]) / (xs[-1] - xs[0]))
    first = (values[1] - values[0]) / (xs[1] - xs[0])
    found = np.interp(x, xs, values)
    found = np.where(x > xs[-1], values[-1] + (x - xs[-1]) * last, found)
    result: np.ndarray = np.maximum(np.where(x < xs[0], values[0] - (xs[0] - x) * first, found), 0.0)
    return result
