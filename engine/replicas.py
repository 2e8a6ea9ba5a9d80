"""Every rank holds a copy of the model; these are kept equal."""

from __future__ import annotations

import torch
from torch import nn

from engine.checkpoint import optimizer_state, weights_digest
from engine.session import Session


def send_weights(
    session: Session, model: nn.Module, optimizer: torch.optim.Optimizer, average: nn.Module | None = None
) -> None:
    """Give all ranks rank 0's parameters, buffers, optimiser state and average of weights. Collective."""
    averages = average.state_dict().values() if average is not None else ()
    session.broadcast([*model.state_dict().values(), *optimizer_state(optimizer)[0].values(), *averages])


def make_equal(
    session: Session, model: nn.Module, optimizer: torch.optim.Optimizer, average: nn.Module | None = None
) -> list[int]:
    """Give all ranks rank 0's state where unlike hardware has rounded the same updates differently. Collective.

    Returns:
        The ranks that had other weights than rank 0.
    """
    digests = session.comm.allgather(weights_digest(model))
    different = [rank for rank, digest in enumerate(digests) if digest != digests[0]]
    if different:
        send_weights(session, model, optimizer, average)
    return different
