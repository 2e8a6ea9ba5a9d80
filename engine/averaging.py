"""A running average of a model's weights: less noisy than those of any one step, at no cost when it is used.

B. T. Polyak and A. B. Juditsky, "Acceleration of Stochastic Approximation by Averaging", SIAM J. Control Optim. 30
(1992); here a step counts the less the longer ago it was.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

Tensors = tuple[Tensor, ...] | list[Tensor]


def averaged_model(model: nn.Module, decay: float) -> AveragedModel:
    """A copy of a model, in `.module`, whose parameters are to follow as an average; buffers are copied as they are.

    Call its update_parameters(model) after each step. `decay` of the average is left at a step, and less in the first
    steps, (1 + n) / (10 + n) after n of them, so that the initial weights are soon forgotten.

    Args:
        model: equal on all ranks, and not yet hooked into by others.
        decay: above 0 and below 1.
    """

    def follow(averages: Tensors, weights: Tensors, _: Tensor | int) -> None:
        # The count that is handed over is on the averages' device, where reading it would wait for a GPU.
        steps = int(average.n_averaged)
        torch._foreach_lerp_(averages, weights, 1 - min(decay, (1 + steps) / (10 + steps)))

    average = AveragedModel(model, multi_avg_fn=follow)
    return average
