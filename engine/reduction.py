"""Sums of tensors over the ranks, in the background: started by all ranks in the same order, waited for later."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from engine.session import Session

SEGMENT = 1 << 17
"""numbers per message on CPU hosts. Two hosts that exchanged 4 MB in one message at 1 Gbit/s took 34 ms when they began
at the same moment and 50 to 65 when one began a tenth of a millisecond earlier; in messages of half a MB 34."""
PADDING = 1024
"""a part of varying length is filled up to a multiple of this: few lengths, which Horovod knows from earlier steps"""
_POLL_SECONDS = 50e-6


class Reducer:
    """Starts sums and waits for them.

    Args:
        session: the ranks.
        compression: "none", or "fp16": float32 tensors are rounded to 16 bits for the journey and summed in them.
    """

    def __init__(self, session: Session, compression: str = "none") -> None:
        self._session, self._half = session, compression == "fp16"
        self._running: list[tuple[Any, Tensor, Tensor]] = []
        try:
            from native import mpi_wait
        except ImportError:  # then Horovod's thread is left alone
            mpi_wait = None
        self._mpi_wait: Any = mpi_wait if session.size > 1 else None

    def start(self, name: str, flat: Tensor) -> None:
        """Have a flat tensor summed in place; it must not be touched until `wait` has returned. Collective.

        Horovod begins at once, or where it was told of `computing`, after the end of that has been told.

        Args:
            name: tells the ranks' tensors apart; the same at every step.
        """
        if self._session.size == 1:
            return
        hvd = self._session.hvd
        step = SEGMENT if flat.device.type == "cpu" else flat.numel()
        for begin in range(0, flat.numel(), max(1, step)):
            target = flat[begin : begin + step]
            sent = target.half() if self._half and target.dtype == torch.float32 else target
            # A name stands for one length: Horovod agrees anew on what it has not seen before.
            label = f"engine.{name}.{begin}.{len(sent)}"
            self._running.append((hvd.allreduce_async_(sent, op=hvd.Sum, name=label), sent, target))

    def computing(self, busy: bool) -> None:
        """Tell Horovod's thread whether this rank computes for some time, with nothing to sum; `wait` tells the end."""
        if self._mpi_wait is not None:
            self._mpi_wait.computing(busy)

    def wait(self) -> None:
        """Return when all that was started is summed."""
        self.computing(False)
        for handle, sent, target in self._running:
            wait_for(partial(self._session.hvd.poll, handle))
            self._session.hvd.synchronize(handle)
            if sent is not target:
                target.copy_(sent)
        self._running.clear()


def wait_for(done: Callable[[], Any]) -> None:
    """Wait without spinning: Horovod's and MPI's own waits take a core that a slower rank may need."""
    while not done():
        time.sleep(_POLL_SECONDS)


def padded(numbers: int) -> int:
    """A length of at least so many numbers out of few."""
    return -(-numbers // PADDING) * PADDING
