"""The learning rate's course over a run: a linear rise, then level or falling."""

from __future__ import annotations

import math

import torch

KINDS = ("constant", "inverse", "linear", "cosine")


class LearningRate:
    """Sets an optimiser's learning rates step by step; the same on every rank, for it depends on the step alone.

    "inverse" falls as 1 / (1 + epochs done), a little in every step (Robbins and Monro, "A Stochastic Approximation
    Method", 1951), whatever the number of epochs to come: a run that is prolonged goes on as if it had been meant to be
    as long. "linear" and "cosine" fall to 0 at the end of the run, and so hang on its length. Half a cosine: Loshchilov
    and Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts", ICLR 2017, without the restarts.

    Args:
        optimizer: its parameter groups' present rates are those after the rise.
        kind: one of KINDS.
        warmup_steps: steps over which the rates rise from 0.
        epoch_steps: steps of an epoch.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, kind: str, warmup_steps: int, epoch_steps: int) -> None:
        if kind not in KINDS:
            raise ValueError(f"schedule {kind!r}: one of {', '.join(KINDS)}")
        self._optimizer, self._kind, self._warmup, self._epoch_steps = optimizer, kind, warmup_steps, epoch_steps
        self._rates = [float(group["lr"]) for group in optimizer.param_groups]
        self._factor = 1.0

    def factor(self, step: int, total_steps: int) -> float:
        """What the rates are multiplied by in a step.

        Args:
            step: steps done before it.
            total_steps: of the whole run.
        """
        if step < self._warmup:
            return (step + 1) / self._warmup
        if self._kind == "constant":
            return 1.0
        if self._kind == "inverse":
            return self._epoch_steps / (self._epoch_steps + step - self._warmup)
        # Of the steps after the rise the first has the full rate, and the one after the last would have 0.
        part = min(1.0, (step - self._warmup) / max(1, total_steps - self._warmup))
        return 1.0 - part if self._kind == "linear" else (1.0 + math.cos(math.pi * part)) / 2

    def set(self, step: int, total_steps: int) -> None:
        """Set the rates of a step. A constant rate is not touched, so that a user's own schedule may set it."""
        factor = self.factor(step, total_steps)
        if factor != self._factor:
            self._set(factor)

    def reset(self) -> None:
        """Put back this run's rates, after the optimiser's state was loaded with those of another."""
        self._set(1.0)

    def _set(self, factor: float) -> None:
        self._factor = factor
        for group, rate in zip(self._optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * factor
