"""The gradient exchange: one flat buffer per number type, reduced by Horovod with op=Sum.

Every parameter's .grad is a view into its buffer, so that backward writes straight into what is sent. One buffer per
number type means that Horovod has nothing to fuse by order of arrival: the same bits at every run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn

from engine.session import Session


@dataclass
class Control:
    """What all ranks must know of a step, summed over them: it travels with the gradients."""

    loss: float = 0.0
    """sum of the weighted losses of the rows"""
    weight: float = 0.0
    rows: float = 0.0
    nonfinite: float = 0.0
    """ranks whose loss is not a finite number"""
    nonfinite_ranks: float = 0.0
    """sum of (rank + 1) over them: tells which it is when there is one"""
    checkpoint: float = 0.0
    """above 0: a checkpoint is due after this step"""


class GradientExchange:
    """Sums gradients and the control vector over all ranks.

    Args:
        parameters: those that are trained, in the same order on every rank.
        session: the ranks.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], session: Session) -> None:
        self._session = session
        self._views: list[tuple[nn.Parameter, Tensor]] = []
        kinds = sorted({parameter.dtype for parameter in parameters}, key=str)
        self.buffers: list[Tensor] = []
        control_size = len(fields(Control))
        self._control = torch.zeros(0, dtype=torch.float64)
        for kind in kinds:
            members = [parameter for parameter in parameters if parameter.dtype == kind]
            # In float64 the control vector rides at the end of the gradients' own buffer (see the module's docstring).
            extra = control_size if kind == torch.float64 else 0
            flat = torch.zeros(sum(p.numel() for p in members) + extra, dtype=kind, device=members[0].device)
            if extra:
                self._control = flat[-extra:]
            at = 0
            for parameter in members:
                view = flat[at : at + parameter.numel()].view_as(parameter)
                parameter.grad = view
                self._views.append((parameter, view))
                at += parameter.numel()
            self.buffers.append(flat)
        self._gradients = [
            flat[: flat.numel() - (control_size if flat.dtype == torch.float64 else 0)] for flat in self.buffers
        ]
        if not len(self._control):
            device = parameters[0].device
            self._control = torch.zeros(control_size, dtype=torch.float64, device=device)
            self.buffers.append(self._control)

    def clear(self) -> None:
        """Set all gradients to 0, in place.

        Raises:
            ValueError: a parameter's .grad was replaced.
        """
        for parameter, view in self._views:
            if parameter.grad is not view:
                raise ValueError(
                    "a parameter's .grad was replaced, so its gradient would not be exchanged and the model would not "
                    "learn; do not call zero_grad: the trainer clears the gradients"
                )
        for flat in self.buffers:
            flat.zero_()

    def sum_over_ranks(self, loss: Tensor | float, weight: Tensor | float, control: Control) -> Control:
        """Sum gradients and control over all ranks; waits for all of them.

        Args:
            loss, weight: sums of this rank's rows; tensors stay on their device until the exchange is over.
            control: the remaining fields.

        Returns:
            The control fields, summed; the gradients are summed in place.
        """
        bad = torch.as_tensor(loss).isfinite().logical_not()
        self._control[0], self._control[1], self._control[2] = loss, weight, control.rows
        self._control[3], self._control[4] = bad, bad * (self._session.rank + 1)
        self._control[5] = control.checkpoint
        self._session.sum_in_place(self.buffers)
        return Control(*self._control.tolist())

    def scale(self, factor: float) -> None:
        """Multiply all gradients."""
        for flat in self._gradients:
            flat.mul_(factor)

    def norm(self) -> float:
        """Euclidean norm of the whole gradient, not finite where a gradient is not."""
        norms = torch.stack([torch.linalg.vector_norm(flat).double() for flat in self._gradients])
        return float(torch.linalg.vector_norm(norms))
