"""Number types of the computation: float64, float32, and the 16-bit ones by autocast over float32 weights."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

from engine.errors import UsageError

_AUTOCAST = {"bfloat16": torch.bfloat16, "float16": torch.float16}
_GROWTH_STEPS = 2000
_LARGEST_SCALE = 2.0**24


def weight_type(name: str) -> torch.dtype:
    """Number type of the weights: the 16-bit ones compute on float32 weights."""
    return torch.float64 if name == "float64" else torch.float32


class Precision:
    """The number type of forward and backward; for float16 the loss scale that keeps small gradients above 0.

    The scale follows the usual rule of dynamic loss scaling (Micikevicius et al., "Mixed precision training", ICLR
    2018): halved, and the step left out, when a gradient overflows; doubled after 2,000 steps without. All ranks see
    the same summed gradient, so all keep the same scale.

    Raises:
        UsageError: float16 on a CPU, whose kernels do not take it.
    """

    def __init__(self, name: str, device: torch.device) -> None:
        if name == "float16" and device.type == "cpu":
            raise UsageError("--precision float16 needs a GPU; take bfloat16 or float32 on a CPU")
        self.name, self._device = name, device
        self.scale = 2.0**16 if name == "float16" else 1.0
        self._good_steps = 0

    def context(self) -> AbstractContextManager[object]:
        """Wraps forward."""
        if self.name in _AUTOCAST:
            return torch.autocast(self._device.type, _AUTOCAST[self.name])
        return nullcontext()

    def overflowed(self, norm_is_finite: bool) -> bool:
        """Update the scale after a step; whether the step is to be left out (float16 only)."""
        if self.name != "float16":
            return False
        if not norm_is_finite:
            self.scale, self._good_steps = self.scale / 2, 0
            return self.scale >= 1.0  # below 1 it is no matter of scale any more
        self._good_steps += 1
        if self._good_steps >= _GROWTH_STEPS:
            self.scale, self._good_steps = min(self.scale * 2, _LARGEST_SCALE), 0
        return False

    def state(self) -> dict[str, float]:
        """What a checkpoint keeps."""
        return {"scale": self.scale, "good_steps": self._good_steps}

    def load_state(self, state: dict[str, float]) -> None:
        """Go on from a checkpoint."""
        self.scale, self._good_steps = float(state["scale"]), int(state["good_steps"])
