"""How fast each rank is: a cost model per rank, fitted to what the ranks timed. Pure: no clock, no MPI, no torch.

A rank's compute time for n rows padded to L tokens is modelled as

    t = a + c * L + b * n * L

a: what a step costs at all; c: what a time step costs however many rows it has (a recurrent network takes its time
steps one by one); b: a row's time step. In a bucket of one length that is a line in the padded timesteps n * L. Where a
line misfits the start-up profile (a GPU short of memory has a cliff), the profile itself is the shape, made monotone,
and only its level is fitted.

Shapes: R ranks, B buckets, F = 3 features (1, L, n * L).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from engine.shares import Costs

MEMORY_STEPS = 200.0
"""steps after which a timing counts for 1/e of what it did"""
PRIOR_STEPS = 25.0
"""what the shape of the cost (fixed part against part per row) is taken to be worth before it was timed, in steps"""
PRIOR_SCATTER = 0.15
"""relative scatter of a step's time that is assumed before steps have shown it, worth so many steps:"""
SCATTER_STEPS = 4.0
CHANGE = 0.1
"""a look's timings this far off the model, and 4 standard errors, mean that the rank's speed has changed"""
CHANGE_UNPROFILED = 0.4
"""the same for a rank without a profile, whose model may be that far off at other shares"""
MISFIT = 0.25
"""relative root mean square error of a line on the start-up profile from which on the profile itself is the shape"""
MOST_OFF = 1e6
"""what a timing may be at most, as a multiple of what the model predicts"""
HUBER = 3.0
"""standard errors from which on a timing counts less: one hiccup is nobody's speed"""
LEAST_WEIGHT = 0.1
"""but what contradicts the model again and again is heard in the end"""

_STATE = (
    "_theta_RF",
    "_shape_RF",
    "_matrix_RFF",
    "_vector_RF",
    "_scatter_R",
    "_freedom_R",
    "steps_R",
    "_profiled_R",
)
"""what a SpeedModel knows, beside the curves"""


@dataclass(frozen=True)
class ProfilePoint:
    """A timed batch of the start-up profile."""

    bound: int
    """padded length, tokens"""
    rows: int
    seconds: float


class SpeedModel:
    """The cost models of all ranks.

    Args:
        bounds: padded length of each bucket.
        ranks: their number.
        profile: per rank, what it timed at the start; empty where it timed nothing.
    """

    def __init__(self, bounds: Sequence[int], ranks: int, profile: Sequence[Sequence[ProfilePoint]] = ()) -> None:
        self._bounds_B = np.array(bounds, dtype=float)
        self._theta_RF = np.zeros((ranks, 3))
        self._shape_RF = np.zeros((ranks, 3))
        """parameters that were expected before the fit, up to a common factor"""
        self._curves: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self._matrix_RFF = np.zeros((ranks, 3, 3))
        self._vector_RF = np.zeros((ranks, 3))
        self._scatter_R = np.zeros(ranks)
        self._freedom_R = np.zeros(ranks)
        self.steps_R = np.zeros(ranks)
        """steps that the model of each rank rests on, older ones counted less"""
        self._profiled_R = np.zeros(ranks)
        for rank, points in enumerate(profile):
            if points:
                self._take_profile(rank, points)

    def known(self) -> np.ndarray:
        """Whether anything was timed, per rank: bool [R]."""
        return np.asarray(self._theta_RF.any(axis=1))

    def observe(self, looks_RB4: np.ndarray) -> list[int]:
        """Take what was timed since the last call.

        Args:
            looks_RB4: per rank and bucket: steps, mean rows, mean seconds, sum of squared deviations of the seconds.

        Returns:
            Ranks whose speed has changed: what was timed before is forgotten for them.
        """
        steps_RB = looks_RB4[:, :, 0]
        timed_RB = (steps_RB > 0) & (looks_RB4[:, :, 2] > 0)
        seconds_RB = np.where(timed_RB, looks_RB4[:, :, 2], 1.0)
        features_RBF = self._features(np.where(timed_RB, looks_RB4[:, :, 1], 1.0))
        squares_RB = np.where(timed_RB, looks_RB4[:, :, 3] / seconds_RB**2, 0.0)
        self._count_scatter(timed_RB, steps_RB, squares_RB)
        new_R = timed_RB.any(axis=1) & ~self.known()
        if new_R.any():
            self._begin(new_R, timed_RB, steps_RB, seconds_RB, features_RBF)
        weight_RB = np.where(timed_RB, steps_RB, 0.0)
        total_R = np.maximum(weight_RB.sum(axis=1), 1e-300)
        # How far off the model: the ratio of what was timed to what it predicted, pooled over the buckets.
        # A curve may promise next to nothing for few rows, below where it was timed: the ratio stays a number.
        predicted_RB = self._predict(features_RBF)
        ratio_RB = np.minimum(seconds_RB / np.maximum(predicted_RB, 1e-300), MOST_OFF)
        level_R = (weight_RB * ratio_RB).sum(axis=1) / total_R
        # Either the steps scatter as they always did, or as those of this look did: in one with a hiccup, widely.
        look_R = np.sqrt((squares_RB * ratio_RB**2).sum(axis=1)) / total_R
        error_R = np.maximum(self._step_error() / np.sqrt(total_R), look_R)
        least_R = np.where(self._profiled_R > 0, CHANGE, CHANGE_UNPROFILED)
        changed_R = timed_RB.any(axis=1) & ~new_R & (np.abs(level_R - 1) > np.maximum(least_R, 4 * error_R))
        if changed_R.any():
            self._theta_RF[changed_R] *= level_R[changed_R, None]
            self._shape_RF[changed_R] = self._theta_RF[changed_R]
            for array in (self._matrix_RFF, self._vector_RF, self.steps_R, self._scatter_R, self._freedom_R):
                array[changed_R] = 0
            self._profiled_R[changed_R] = np.minimum(self._profiled_R[changed_R], 1)
            ratio_RB[changed_R] /= level_R[changed_R, None]
        off_RB = np.abs(ratio_RB - 1) / (self._step_error()[:, None] / np.sqrt(np.maximum(weight_RB, 1.0)))
        weight_RB = weight_RB * np.clip(HUBER / np.maximum(off_RB, 1e-300), LEAST_WEIGHT, 1.0)
        self._remember(weight_RB, seconds_RB, features_RBF)
        self._fit()
        return np.flatnonzero(changed_R).tolist()

    def state(self) -> dict[str, Any]:
        """Plain values to go on from."""
        return {
            **{name: getattr(self, name).tolist() for name in _STATE},
            "curves": {str(rank): [xs.tolist(), ys.tolist()] for rank, (xs, ys) in self._curves.items()},
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from what `state` returned, for as many ranks."""
        for name in _STATE:
            setattr(self, name, np.array(state[name], dtype=float).reshape(getattr(self, name).shape))
        self._curves = {int(rank): (np.array(xs), np.array(ys)) for rank, (xs, ys) in state["curves"].items()}

    def costs(self, bucket: int, batch_size: int) -> Costs:
        """Costs of all ranks in a bucket. One that was never timed is taken to be as fast as the slowest that was.

        Raises:
            ValueError: nothing was timed on any rank.
        """
        known_R = self.known()
        if not known_R.any():
            raise ValueError("no rank has timed anything yet")
        bound = self._bounds_B[bucket]
        knots = sorted({0.0, float(batch_size), *(x / bound for xs, _ in self._curves.values() for x in xs)})
        rows_RK = np.tile(np.array(knots), (len(known_R), 1))
        seconds_RK = np.stack([self._at(rows, bound) for rows in knots], axis=1)
        slowest = np.flatnonzero(known_R)[np.argmax(seconds_RK[known_R, -1])]
        seconds_RK[~known_R] = seconds_RK[slowest]
        return Costs(rows_RK, np.maximum.accumulate(seconds_RK, axis=1))

    def errors(self) -> np.ndarray:
        """Relative standard error of each rank's level [R]; that of a rank that has timed nothing is infinite."""
        steps_R = np.maximum(self.steps_R, self._profiled_R)
        error_R: np.ndarray = np.where(self.known(), self._step_error() / np.sqrt(np.maximum(steps_R, 1.0)), np.inf)
        return error_R

    def forget(self, rank: int, points: Sequence[ProfilePoint]) -> None:
        """Begin anew with a rank, from batches that it has just timed."""
        for array in (self._matrix_RFF, self._vector_RF, self.steps_R, self._scatter_R, self._freedom_R):
            array[rank] = 0
        old = self._theta_RF[rank].copy()
        if len({point.rows for point in points}) < 2 and old.any():
            x_P = np.array([point.rows * point.bound for point in points], dtype=float)
            x_PF = np.stack([np.ones_like(x_P), [point.bound for point in points], x_P], axis=1)
            if rank in self._curves:
                x_PF = np.stack([_along(self._curves[rank], x_P), 0 * x_P, 0 * x_P], axis=1)
            level = np.mean(np.array([point.seconds for point in points]) / (x_PF @ old))
            self._theta_RF[rank] = self._shape_RF[rank] = old * float(level)
        else:
            self._take_profile(rank, points)

    def _take_profile(self, rank: int, points: Sequence[ProfilePoint]) -> None:
        x_PF = np.array([[1.0, point.bound, point.rows * point.bound] for point in points])
        seconds_P = np.array([point.seconds for point in points])
        theta_F, misfit = _fit_relative(x_PF, seconds_P)
        self._profiled_R[rank] = len(points)
        self._theta_RF[rank] = theta_F
        self._curves.pop(rank, None)
        if misfit > MISFIT and len({point.rows * point.bound for point in points}) > 2:
            self._curves[rank] = _monotone(x_PF[:, 2], seconds_P)
            self._theta_RF[rank] = (1.0, 0.0, 0.0)  # the level of the curve
        self._shape_RF[rank] = self._theta_RF[rank]

    def _features(self, rows_RB: np.ndarray) -> np.ndarray:
        """What the model is linear in; for a rank with a curve of its own, that curve alone. [R, B, F]"""
        bounds_RB = np.broadcast_to(self._bounds_B, rows_RB.shape)
        features_RBF = np.stack([np.ones_like(rows_RB), bounds_RB, rows_RB * bounds_RB], axis=2)
        for rank, curve in self._curves.items():
            features_RBF[rank] = 0.0
            features_RBF[rank, :, 0] = _along(curve, rows_RB[rank] * self._bounds_B)
        return features_RBF

    def _predict(self, features_RBF: np.ndarray) -> np.ndarray:
        seconds_RB: np.ndarray = np.einsum("rbf,rf->rb", features_RBF, self._theta_RF)
        return seconds_RB

    def _at(self, rows: float, bound: float) -> np.ndarray:
        """Predicted seconds [R] of every rank for as many rows of one length."""
        seconds_R: np.ndarray = self._theta_RF @ np.array([1.0, bound, rows * bound])
        for rank, curve in self._curves.items():
            seconds_R[rank] = self._theta_RF[rank, 0] * _along(curve, np.array([rows * bound]))[0]
        return seconds_R

    def _begin(
        self, new_R: np.ndarray, timed_RB: np.ndarray, steps_RB: np.ndarray, seconds_RB: np.ndarray, x_RBF: np.ndarray
    ) -> None:
        """Ranks without a profile begin in proportion to their rows."""
        weight_RB = np.where(timed_RB, steps_RB, 0.0)
        rate_R = (weight_RB * seconds_RB / x_RBF[:, :, 2]).sum(axis=1) / np.maximum(weight_RB.sum(axis=1), 1e-300)
        self._theta_RF[new_R, 2] = rate_R[new_R]
        self._shape_RF[new_R] = self._theta_RF[new_R]

    def _remember(self, weight_RB: np.ndarray, seconds_RB: np.ndarray, features_RBF: np.ndarray) -> None:
        relative_RBF = features_RBF / seconds_RB[:, :, None]
        keep = np.exp(-weight_RB.sum(axis=1) / MEMORY_STEPS)
        self._matrix_RFF *= keep[:, None, None]
        self._vector_RF *= keep[:, None]
        self._matrix_RFF += np.einsum("rb,rbf,rbg->rfg", weight_RB, relative_RBF, relative_RBF)
        self._vector_RF += np.einsum("rb,rbf->rf", weight_RB, relative_RBF)
        self.steps_R = self.steps_R * keep + weight_RB.sum(axis=1)

    def _fit(self) -> None:
        """Least squares of relative errors, held to the expected shape by ridge regression.

        In a bucket that has always had the same rows, the data tell the level only and the shape stays as expected.
        """
        expected_RF = (self._shape_RF > 0).astype(float)
        # A parameter that was not expected is measured in tenths of an expected step.
        typical_RF = np.einsum("rfg,rg->rf", self._matrix_RFF, self._theta_RF) / np.maximum(self.steps_R, 1)[:, None]
        unit_RF = np.where(self._shape_RF > 0, self._shape_RF, 0.1 / np.maximum(typical_RF, 1e-300))
        unit_RF = np.where(typical_RF > 0, unit_RF, 0.0)
        matrix_RFF = self._matrix_RFF * unit_RF[:, :, None] * unit_RF[:, None, :]
        vector_RF = self._vector_RF * unit_RF
        level_R = np.einsum("rf,rf->r", vector_RF, expected_RF)
        level_R /= np.maximum(np.einsum("rfg,rf,rg->r", matrix_RFF, expected_RF, expected_RF), 1e-300)
        matrix_RFF = matrix_RFF + PRIOR_STEPS / 3 * np.eye(3)
        vector_RF = vector_RF + PRIOR_STEPS / 3 * level_R[:, None] * expected_RF
        theta_RF = np.maximum(np.linalg.solve(matrix_RFF, vector_RF[:, :, None])[:, :, 0], 0.0) * unit_RF
        # The ridge holds the level back too, and a parameter below 0 was set to it: the level is fitted once more.
        predicted_R = np.einsum("rf,rf->r", self._vector_RF, theta_RF)
        square_R = np.einsum("rfg,rf,rg->r", self._matrix_RFF, theta_RF, theta_RF)
        theta_RF = theta_RF * (predicted_R / np.maximum(square_R, 1e-300))[:, None]
        good_R = (self.steps_R > 0) & np.isfinite(theta_RF).all(axis=1) & theta_RF.any(axis=1)
        self._theta_RF[good_R] = theta_RF[good_R]

    def _count_scatter(self, timed_RB: np.ndarray, steps_RB: np.ndarray, squares_RB: np.ndarray) -> None:
        freedom_R = np.where(timed_RB, np.maximum(steps_RB - 1, 0.0), 0.0).sum(axis=1)
        keep_R = np.exp(-freedom_R / MEMORY_STEPS)
        # One hiccup must not make the model deaf for what follows: a look raises the scatter threefold at most.
        most_R = np.where(self._freedom_R > SCATTER_STEPS, freedom_R * (3 * self._step_error()) ** 2, np.inf)
        squares_R = np.minimum(squares_RB.sum(axis=1), most_R)
        self._scatter_R = self._scatter_R * keep_R + squares_R
        self._freedom_R = self._freedom_R * keep_R + freedom_R

    def _step_error(self) -> np.ndarray:
        """Relative standard deviation of one step's time, per rank [R]."""
        prior = SCATTER_STEPS * PRIOR_SCATTER**2
        error_R: np.ndarray = np.sqrt((self._scatter_R + prior) / (self._freedom_R + SCATTER_STEPS))
        return error_R


def _fit_relative(x_PF: np.ndarray, seconds_P: np.ndarray) -> tuple[np.ndarray, float]:
    """Parameters of at least 0 that minimise the relative squared errors, robustly, and their root mean square.

    Every subset of the three features is tried: with so few, that is the whole of non-negative least squares.
    Residuals are weighted anew four times (Huber, "Robust Estimation of a Location Parameter", 1964).
    """
    relative_PF = x_PF / seconds_P[:, None]
    weight_P = np.ones(len(seconds_P))
    best = np.zeros(3)
    for _ in range(4):
        least = np.inf
        for subset in ((2,), (0, 2), (1, 2), (0, 1, 2)):
            part_PF = relative_PF[:, subset] * np.sqrt(weight_P)[:, None]
            found = np.linalg.lstsq(part_PF, np.sqrt(weight_P), rcond=None)[0]
            if (found < 0).any():
                continue
            theta_F = np.zeros(3)
            theta_F[list(subset)] = found
            loss = float((weight_P * (relative_PF @ theta_F - 1) ** 2).sum())
            # A parameter more must earn its place.
            if loss < least * 0.98 - 1e-12:
                best, least = theta_F, loss
        residual_P = np.abs(relative_PF @ best - 1)
        scale = max(float(np.median(residual_P)) * 1.5, 1e-6)
        weight_P = np.minimum(1.0, 2 * scale / np.maximum(residual_P, 1e-300))
    return best, float(np.sqrt(np.mean((relative_PF @ best - 1) ** 2)))


def _monotone(x_P: np.ndarray, seconds_P: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Knots of a curve that does not fall: pool adjacent violators (Ayer and others, 1955), equal weights."""
    order = np.argsort(x_P, kind="stable")
    pools: list[list[float]] = []  # x, mean, count
    for x, seconds in zip(x_P[order], seconds_P[order], strict=True):
        if pools and x == pools[-1][0]:
            _, mean, count = pools.pop()
            pools.append([x, (mean * count + seconds) / (count + 1), count + 1])
        else:
            pools.append([x, seconds, 1.0])
    levels: list[list[float]] = []  # mean, count, members
    for _, mean, count in pools:
        levels.append([mean, count, 1.0])
        while len(levels) > 1 and levels[-2][0] > levels[-1][0]:
            (m1, n1, k1), (m2, n2, k2) = levels.pop(-2), levels.pop()
            levels.append([(m1 * n1 + m2 * n2) / (n1 + n2), n1 + n2, k1 + k2])
    values = [mean for mean, _, members in levels for _ in range(int(members))]
    return np.array([pool[0] for pool in pools]), np.array(values)


def _along(curve: tuple[np.ndarray, np.ndarray], x: np.ndarray) -> np.ndarray:
    """The curve's value; beyond its ends the nearest line goes on, never below 0."""
    xs, values = curve
    slope = (values[-1] - values[-2]) / (xs[-1] - xs[-2])
    first = (values[1] - values[0]) / (xs[1] - xs[0])
    found = np.interp(x, xs, values)
    found = np.where(x > xs[-1], values[-1] + (x - xs[-1]) * slope, found)
    result: np.ndarray = np.maximum(np.where(x < xs[0], values[0] - (xs[0] - x) * first, found), 0.0)
    return result
