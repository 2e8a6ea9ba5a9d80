"""How fast each rank is: a cost model per rank, fitted to what the ranks timed. Pure: no clock, no MPI, no torch.

A rank's compute time for n rows padded to L tokens is modelled as

    t = level * (a + c * L + d * n + b * n * L)

a: what a step costs at all; c: what a time step costs however many rows it has (a recurrent network takes its time
steps one by one); d: a row, however long; b: a row's time step. In a bucket of one length that is a line in the padded
timesteps n * L. The level is the bucket's own, near 1: it takes up what the four parameters leave over at the shares
in force, so that there, at least, the model is right. Where a line misfits the start-up profile (a GPU short of memory
has a cliff), the profile itself, made monotone, is one more term in place of the parameters, which only correct it.

Shapes: R ranks, B buckets, F = 5 features: 1, L, n, n * L, the rank's own curve or 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from engine.shares import Costs
from engine.speed_fit import Curve, along, fit_held, fit_relative, has_cliff, monotone

MEMORY_STEPS = 200.0
"""steps after which a timing counts for 1/e of what it did"""
POINT_STEPS = 2.0
"""steps that a point of the start-up profile counts for: so often it was timed"""
SHAPE_STEPS = 2.0
"""what the expected value of each parameter, beside the others, is taken to be worth in steps"""
SURPRISE_PROFILED, SURPRISE_UNPROFILED = 0.1, 1.0
"""what a parameter that was not expected may easily add to a step, as a part of it"""
LEVEL_STEPS = 8.0
"""what a bucket's level of 1 is taken to be worth in steps"""
CHANGED_STEPS = 10.0
"""what was timed before a change of speed counts, at the new level, for so many steps at most: it tells the shape"""
PRIOR_SCATTER = 0.15
"""relative scatter of a step's time that is assumed before steps have shown it, worth so many steps:"""
SCATTER_STEPS = 4.0
CHANGE = 0.1
"""a look's timings this far off the model, and 4 standard errors, mean that the rank's speed has changed, and not that
the model is wrong about rows or lengths that it has not seen; where it has not, so much more is the model's fault:"""
BEYOND_PROFILED, BEYOND_UNPROFILED = 0.15, 1.0
"""per natural logarithm of the ratio of the rows to those that the bucket's level rests on"""
UNSEEN_PROFILED, UNSEEN_UNPROFILED = 0.4, 1.0
"""in a bucket that was never timed"""
MISFIT = 0.25
"""relative error of a line at two points of the start-up profile at least, from which on the profile is the shape"""
MOST_OFF = 1e6
"""what a timing may be at most, as a multiple of what the model predicts"""
HUBER = 3.0
"""standard errors from which on a timing counts less: one hiccup is nobody's speed"""
LEAST_WEIGHT = 0.1
"""but what contradicts the model again and again is heard in the end"""

ROWS, STEPS, CURVE, FEATURES = 2, 3, 4, 5
"""places of n, n * L and the curve among the features, and their number"""

_STATE = (
    "_theta_RF",
    "_shape_RF",
    "_matrix_RBFF",
    "_vector_RBF",
    "_logs_RB",
    "_weight_RB",
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
        self._theta_RF = np.zeros((ranks, FEATURES))
        self._shape_RF = np.zeros((ranks, FEATURES))
        """parameters that were expected before the fit, up to a common factor"""
        self._curves: dict[int, Curve] = {}
        self._matrix_RBFF = np.zeros((ranks, len(bounds), FEATURES, FEATURES))
        self._vector_RBF = np.zeros((ranks, len(bounds), FEATURES))
        self._logs_RB = np.zeros((ranks, len(bounds)))
        """sums of the logarithms of the rows that were timed, weighted by the steps"""
        self._weight_RB = np.zeros((ranks, len(bounds)))
        """those steps, older ones counted less"""
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
            Ranks whose speed has changed: what was timed before tells their shape alone.
        """
        steps_RB = looks_RB4[:, :, 0]
        timed_RB = (steps_RB > 0) & (looks_RB4[:, :, 1] > 0) & (looks_RB4[:, :, 2] > 0)
        rows_RB = np.where(timed_RB, looks_RB4[:, :, 1], 1.0)
        seconds_RB = np.where(timed_RB, looks_RB4[:, :, 2], 1.0)
        features_RBF = self._features(rows_RB)
        squares_RB = np.where(timed_RB, looks_RB4[:, :, 3] / seconds_RB**2, 0.0)
        said_R = np.where(self.known(), self.errors(), 0.0)
        self._count_scatter(timed_RB, steps_RB, squares_RB)
        weight_RB = np.where(timed_RB, steps_RB, 0.0)
        new_R = timed_RB.any(axis=1) & ~self.known()
        if new_R.any():
            self._begin(new_R, weight_RB, seconds_RB, features_RBF)
        total_R = np.maximum(weight_RB.sum(axis=1), 1e-300)
        # How far off the model: the ratio of what was timed to what it predicted, pooled over the buckets.
        # A curve may promise next to nothing for few rows, below where it was timed: the ratio stays a number.
        predicted_RB = np.einsum("rbf,rf->rb", features_RBF, self._theta_RF) * self._levels()
        ratio_RB = np.minimum(seconds_RB / np.maximum(predicted_RB, 1e-300), MOST_OFF)
        level_R = (weight_RB * ratio_RB).sum(axis=1) / total_R
        # Either the steps scatter as they always did, or as those of this look did: in one with a hiccup, widely.
        look_R = np.sqrt((squares_RB * ratio_RB**2).sum(axis=1)) / total_R
        error_R = np.maximum(self._step_error() / np.sqrt(total_R), look_R)
        # What the model says rests on steps that scattered as well.
        error_R = np.hypot(error_R, said_R)
        beyond_RB = self._beyond(rows_RB)
        least_R = CHANGE + (weight_RB * beyond_RB).sum(axis=1) / total_R
        # A speed of half is as far off as one of twice.
        off_R = np.maximum(level_R, 1 / np.maximum(level_R, 1 / MOST_OFF)) - 1
        changed_R = timed_RB.any(axis=1) & ~new_R & (off_R > np.maximum(least_R, 4 * error_R))
        if changed_R.any():
            self._change_speed(changed_R, level_R)
            ratio_RB[changed_R] /= level_R[changed_R, None]
        excess_RB = np.maximum(np.abs(ratio_RB - 1) - beyond_RB, 0.0)
        off_RB = excess_RB / (self._step_error()[:, None] / np.sqrt(np.maximum(weight_RB, 1.0)))
        weight_RB = weight_RB * np.clip(HUBER / np.maximum(off_RB, 1e-300), LEAST_WEIGHT, 1.0)
        self._remember(weight_RB, np.log(rows_RB), features_RBF / seconds_RB[:, :, None])
        self._fit()
        return np.flatnonzero(changed_R).tolist()

    def state(self) -> dict[str, Any]:
        """Plain values to go on from."""
        return {
            **{name: getattr(self, name).tolist() for name in _STATE},
            "curves": {str(rank): [xs.tolist(), ys.tolist()] for rank, (xs, ys) in self._curves.items()},
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on with what `state` returned, for as many ranks. That of another model than this is left aside."""
        if not set(_STATE) <= set(state):
            return
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
        level_R = self._levels()[:, bucket]
        seconds_RK = np.stack([self._at(rows, bound) for rows in knots], axis=1) * level_R[:, None]
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
        old = self._theta_RF[rank].copy()
        if len({point.rows for point in points}) < 2 and old.any():
            seconds_P = np.array([point.seconds for point in points])
            level = float(np.mean(seconds_P / (self._point_features(rank, points) @ old)))
            self._forget(rank)
            self._theta_RF[rank] = self._shape_RF[rank] = old * level
        else:
            self._take_profile(rank, points)

    def _forget(self, rank: int) -> None:
        for name in ("_matrix_RBFF", "_vector_RBF", "_logs_RB", "_weight_RB", "steps_R", "_scatter_R", "_freedom_R"):
            getattr(self, name)[rank] = 0

    def _take_profile(self, rank: int, points: Sequence[ProfilePoint]) -> None:
        self._forget(rank)
        self._curves.pop(rank, None)
        x_PF = self._point_features(rank, points)
        seconds_P = np.array([point.seconds for point in points])
        theta_F, off_P = fit_relative(x_PF[:, :CURVE], seconds_P, (ROWS, STEPS))
        self._profiled_R[rank] = len(points)
        self._theta_RF[rank, :CURVE] = theta_F
        if has_cliff(x_PF[:, STEPS], off_P, MISFIT):
            self._curves[rank] = monotone(x_PF[:, STEPS], seconds_P)
            self._theta_RF[rank] = np.eye(FEATURES)[CURVE]
            x_PF = self._point_features(rank, points)
        self._shape_RF[rank] = self._theta_RF[rank]
        # What was timed stays what was timed: it tells the shape when training shows other times at other shares.
        relative_PF = x_PF / seconds_P[:, None]
        for point, relative_F in zip(points, relative_PF, strict=True):
            bucket = int(np.abs(self._bounds_B - point.bound).argmin())
            self._matrix_RBFF[rank, bucket] += POINT_STEPS * np.outer(relative_F, relative_F)
            self._vector_RBF[rank, bucket] += POINT_STEPS * relative_F

    def _point_features(self, rank: int, points: Sequence[ProfilePoint]) -> np.ndarray:
        x_P = np.array([point.rows * point.bound for point in points], dtype=float)
        curve_P = along(self._curves[rank], x_P) if rank in self._curves else np.zeros_like(x_P)
        return np.array([[1.0, p.bound, p.rows, x, y] for p, x, y in zip(points, x_P, curve_P, strict=True)])

    def _features(self, rows_RB: np.ndarray) -> np.ndarray:
        """What the model is linear in [R, B, F]."""
        bounds_RB = np.broadcast_to(self._bounds_B, rows_RB.shape)
        zero_RB = np.zeros_like(rows_RB)
        features_RBF = np.stack([zero_RB + 1, bounds_RB, rows_RB, rows_RB * bounds_RB, zero_RB], axis=2)
        for rank, curve in self._curves.items():
            features_RBF[rank, :, CURVE] = along(curve, features_RBF[rank, :, STEPS])
        return features_RBF

    def _levels(self) -> np.ndarray:
        """What a bucket's timings are of what the rank's parameters say [R, B]; 1 where there are none."""
        said_RB = np.einsum("rbf,rf->rb", self._vector_RBF, self._theta_RF)
        square_RB = np.einsum("rbfg,rf,rg->rb", self._matrix_RBFF, self._theta_RF, self._theta_RF)
        levels_RB: np.ndarray = (said_RB + LEVEL_STEPS) / (square_RB + LEVEL_STEPS)
        return levels_RB

    def _beyond(self, rows_RB: np.ndarray) -> np.ndarray:
        """Relative error that the model may have at other rows than those its levels rest on [R, B]."""
        seen_RB = self._weight_RB > 0
        profiled_R1 = (self._profiled_R > 0)[:, None]
        away_RB = np.abs(np.log(rows_RB) - self._logs_RB / np.where(seen_RB, self._weight_RB, 1.0))
        beyond_RB = away_RB * np.where(profiled_R1, BEYOND_PROFILED, BEYOND_UNPROFILED)
        unseen_R1 = np.where(profiled_R1, UNSEEN_PROFILED, UNSEEN_UNPROFILED)
        found_RB: np.ndarray = np.where(seen_RB, beyond_RB, unseen_R1)
        return found_RB

    def _at(self, rows: float, bound: float) -> np.ndarray:
        """Predicted seconds [R] of every rank for as many rows of one length, before the bucket's level."""
        seconds_R: np.ndarray = self._theta_RF @ np.array([1.0, bound, rows, rows * bound, 0.0])
        for rank, curve in self._curves.items():
            seconds_R[rank] += self._theta_RF[rank, CURVE] * along(curve, np.array([rows * bound]))[0]
        return seconds_R

    def _begin(self, new_R: np.ndarray, weight_RB: np.ndarray, seconds_RB: np.ndarray, x_RBF: np.ndarray) -> None:
        """Ranks without a profile begin in proportion to their rows."""
        rate_R = (weight_RB * seconds_RB / x_RBF[:, :, STEPS]).sum(axis=1) / np.maximum(weight_RB.sum(axis=1), 1e-300)
        self._theta_RF[new_R, STEPS] = rate_R[new_R]
        self._shape_RF[new_R] = self._theta_RF[new_R]

    def _change_speed(self, changed_R: np.ndarray, level_R: np.ndarray) -> None:
        """All that was timed is taken to have been so many times as long, and counts little beside what comes."""
        self._theta_RF[changed_R] *= level_R[changed_R, None]
        self._shape_RF[changed_R] = self._theta_RF[changed_R]
        kept_R = np.minimum(1.0, CHANGED_STEPS / np.maximum(self._weight_RB.sum(axis=1), CHANGED_STEPS))[changed_R]
        self._matrix_RBFF[changed_R] *= (kept_R / level_R[changed_R] ** 2)[:, None, None, None]
        self._vector_RBF[changed_R] *= (kept_R / level_R[changed_R])[:, None, None]
        self._logs_RB[changed_R] *= kept_R[:, None]
        self._weight_RB[changed_R] *= kept_R[:, None]
        for array in (self.steps_R, self._scatter_R, self._freedom_R):
            array[changed_R] = 0
        self._profiled_R[changed_R] = np.minimum(self._profiled_R[changed_R], 1)

    def _remember(self, weight_RB: np.ndarray, logs_RB: np.ndarray, relative_RBF: np.ndarray) -> None:
        keep_R = np.exp(-weight_RB.sum(axis=1) / MEMORY_STEPS)
        for array in (self._matrix_RBFF, self._vector_RBF, self._logs_RB, self._weight_RB, self.steps_R):
            array *= keep_R.reshape(-1, *[1] * (array.ndim - 1))
        self._matrix_RBFF += weight_RB[:, :, None, None] * relative_RBF[:, :, :, None] * relative_RBF[:, :, None, :]
        self._vector_RBF += weight_RB[:, :, None] * relative_RBF
        self._logs_RB += weight_RB * logs_RB
        self._weight_RB += weight_RB
        self.steps_R += weight_RB.sum(axis=1)

    def _fit(self) -> None:
        theta_RF = fit_held(
            self._matrix_RBFF.sum(axis=1),
            self._vector_RBF.sum(axis=1),
            self._shape_RF,
            self._theta_RF,
            np.where(self._profiled_R > 0, SURPRISE_PROFILED, SURPRISE_UNPROFILED),
            SHAPE_STEPS,
        )
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
