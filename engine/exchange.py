"""The gradient exchange: sums over the ranks, by Horovod with op=Sum, in tensors that are the same at every run.

Every parameter's .grad is a view into a flat buffer, one per number type, so that backward writes straight into what is
sent. Horovod fuses nothing, so that no order of arrival decides the bits.

Row-sparse: the gradient of an embedding is nearly all of the traffic, though a batch touches a part of its rows. Which
ones is a bit map that the ranks unite over MPI while backward runs; then the union's rows are summed and put back where
they belong: the optimiser sees the dense gradient, exactly. Overlapped: what all but a step's last micro-batch gave is
summed while that one computes, and only the rows that it touched are left to send at the end.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from engine.reduction import Reducer, padded, wait_for
from engine.session import Session

ROWS_PAY = 4e-3
"""seconds that a dense exchange must take before a row-sparse one pays, which costs about a millisecond of work"""


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
    terminate: float = 0.0
    """ranks that SIGTERM asked to stop"""
    interrupt: float = 0.0
    """ranks that SIGUSR1 asked to stop"""
    outside: float = 0.0
    """ranks on which an embedding got a gradient in rows that it did not look up"""


_OUTSIDE = [entry.name for entry in fields(Control)].index("outside")


class _Rows:
    """The gradient of one embedding, exchanged by touched rows.

    Args:
        number: of the embedding, for names.
        module: looks rows up; a hook on it notes which.
        gradient: its dense gradient, all 0 between steps.
        comm: a communicator of its own.
    """

    def __init__(self, number: int, module: nn.Embedding, gradient: Tensor, comm: Any) -> None:
        self._number, self._gradient, self._comm = number, gradient, comm
        self._mask = torch.zeros(len(gradient), dtype=torch.uint8)
        self._request: Any = None
        self._sent: list[tuple[Tensor, Tensor]] = []
        module.register_forward_pre_hook(self._note, with_kwargs=True)

    def _note(self, module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        if module.training:
            ids = inputs[0] if inputs else named["input"]
            self._mask.index_fill_(0, ids.reshape(-1).long(), 1)

    def post(self) -> None:
        """Begin to unite the rows that were noted over the ranks. Collective."""
        from mpi4py import MPI

        if self._request is not None:  # the phase is computed a second time
            self._mask.zero_()
            return
        self._bits = np.packbits(self._mask.numpy())
        self._mask.zero_()
        self._request = self._comm.Iallreduce(MPI.IN_PLACE, self._bits, op=MPI.BOR)

    def send(self, reducer: Reducer) -> None:
        """Begin to sum the united rows, and set them to 0 in the gradient. Collective."""
        wait_for(self._request.Test)
        self._request = None
        rows = torch.from_numpy(np.flatnonzero(np.unpackbits(self._bits, count=len(self._gradient))))
        width = self._gradient.shape[1]
        flat = self._gradient.new_zeros(padded(len(rows) * width))
        values = flat[: len(rows) * width].view(-1, width)
        torch.index_select(self._gradient, 0, rows, out=values)
        self._gradient.index_fill_(0, rows, 0.0)
        reducer.start(f"rows.{self._number}.{len(self._sent)}", flat)
        self._sent.append((rows, values))

    def drop(self) -> None:
        """Forget what was looked up and what backward has left in the gradient."""
        self._mask.zero_()
        self._gradient.zero_()

    def left_over(self) -> bool:
        """Whether the gradient has anything left that was not sent."""
        return bool(torch.linalg.vector_norm(self._gradient) != 0)

    def put_back(self) -> None:
        """Add the summed rows to the gradient."""
        for rows, values in self._sent:
            self._gradient.index_add_(0, rows, values)
        self._sent.clear()


class GradientExchange:
    """Sums gradients and the control vector over all ranks.

    A step is `clear`, from which on the rank is taken to compute until it sends; then for each phase (two where
    `overlaps`, otherwise one) backward passes with one `post` before the last of them, and `send_early` after the first
    phase; then `sum_over_ranks`.

    Args:
        model: its trained parameters are exchanged, in the same order on every rank.
        session: the ranks.
        method: "dense", "rows" (embeddings by touched rows, overlapped), or "auto": rows between hosts whose network is
            so slow that they pay, by a measurement at the start.
        compression: "none" or "fp16".
    """

    def __init__(self, model: nn.Module, session: Session, method: str = "dense", compression: str = "none") -> None:
        self._session = session
        self._reducer = Reducer(session, compression)
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._views: list[tuple[nn.Parameter, Tensor]] = []
        self._control = torch.zeros(len(fields(Control)), dtype=torch.float64, device=parameters[0].device)
        # Between processes of one host a dense exchange is as fast as memory; on GPUs NCCL takes care of it.
        several_hosts = session.comm.allreduce(int(session.local_size < session.size)) > 0
        may = session.device.type == "cpu" and (several_hosts or method == "rows") and session.size > 1
        embeddings = _embeddings(model, parameters) if may else {}
        self._flats = self._lay_out(parameters)
        self._rows: list[_Rows] = []
        if embeddings and method != "dense" and (method == "rows" or self._seconds() > ROWS_PAY):
            comm = session.comm.Dup()
            separate = list(embeddings)
            self._flats = self._lay_out([p for p in parameters if all(p is not e for e in separate)])
            gradients = self._lay_out(separate, apart=True)
            self._rows = [
                _Rows(number, embeddings[parameter], gradient.view_as(parameter), comm)
                for number, (parameter, gradient) in enumerate(zip(separate, gradients, strict=True))
            ]
            self._gradients = [*self._flats, *gradients]
        else:
            self._gradients = self._flats
        self.overlaps = bool(self._rows)
        """whether a step has two phases"""

    def _lay_out(self, parameters: Sequence[nn.Parameter], apart: bool = False) -> list[Tensor]:
        """Flat buffers that hold the gradients: one per number type, or one per parameter."""
        kinds = sorted({parameter.dtype for parameter in parameters}, key=str)
        groups = [[p] for p in parameters] if apart else [[p for p in parameters if p.dtype == k] for k in kinds]
        flats = []
        for members in groups:
            flat = torch.zeros(sum(p.numel() for p in members), dtype=members[0].dtype, device=members[0].device)
            at = 0
            for parameter in members:
                view = flat[at : at + parameter.numel()].view_as(parameter)
                parameter.grad = view
                self._views = [(p, v) for p, v in self._views if p is not parameter] + [(parameter, view)]
                at += parameter.numel()
            flats.append(flat)
        return flats

    def _seconds(self) -> float:
        """How long a dense exchange takes, the same on all ranks. Collective."""
        times = []
        for _ in range(4):
            self._session.comm.Barrier()
            start = time.perf_counter()
            self._start_flats()
            self._reducer.wait()
            times.append(time.perf_counter() - start)
        return float(max(self._session.comm.allgather(median(times[1:]))))

    @property
    def method(self) -> str:
        """What was chosen: "dense" or "rows"."""
        return "rows" if self._rows else "dense"

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
        for flat in self._gradients:
            flat.zero_()
        for rows in self._rows:
            rows.drop()
        self._reducer.computing(True)

    def close(self) -> None:
        """No step is under way any more, though one may have been left by an error."""
        self._reducer.computing(False)

    def clear_unsent(self) -> None:
        """Set to 0 what was not sent yet: all of the step's rows are to be computed again, the first phase's too."""
        for flat in self._gradients:
            flat.zero_()

    def drop_sent(self) -> None:
        """The first phase was computed again, for the dense gradients' sake: its embeddings' part was sent before."""
        for rows in self._rows:
            rows.drop()

    def post(self) -> None:
        """All rows of the present phase have been looked up. Collective; its backward may still run."""
        for rows in self._rows:
            rows.post()

    def send_early(self) -> None:
        """Begin to sum what the first phase gave. Collective."""
        for rows in self._rows:
            rows.send(self._reducer)
        self._reducer.computing(False)

    def sum_over_ranks(self, loss: Tensor | float, weight: Tensor | float, control: Control) -> Control:
        """Sum gradients and control over all ranks; waits for all of them.

        Args:
            loss, weight: sums of this rank's rows; tensors stay on their device until the exchange is over.
            control: the remaining fields.

        Returns:
            The control fields, summed; the gradients are summed in place.
        """
        for rows in self._rows:
            rows.send(self._reducer)
        bad = torch.as_tensor(loss).isfinite().logical_not()
        outside = float(any(rows.left_over() for rows in self._rows))
        self._control.copy_(torch.tensor(astuple(control), dtype=torch.float64))
        self._control[0], self._control[1] = loss, weight
        self._control[3], self._control[4] = bad, bad * (self._session.rank + 1)
        self._control[_OUTSIDE] = outside
        self._start_flats()
        self._reducer.wait()
        for rows in self._rows:
            rows.put_back()
        return Control(*self._control.tolist())

    def _start_flats(self) -> None:
        for number, flat in enumerate(self._flats):
            self._reducer.start(f"dense.{number}", flat)
        self._reducer.start("control", self._control)

    def scale(self, factor: float) -> None:
        """Multiply all gradients."""
        for flat in self._gradients:
            flat.mul_(factor)

    def norm(self) -> float:
        """Euclidean norm of the whole gradient, not finite where a gradient is not."""
        norms = torch.stack([torch.linalg.vector_norm(flat).double() for flat in self._gradients])
        return float(torch.linalg.vector_norm(norms))


def _embeddings(model: nn.Module, parameters: Sequence[nn.Parameter]) -> dict[nn.Parameter, nn.Embedding]:
    """The trained weights that nothing but one embedding module holds."""
    owners: dict[nn.Parameter, list[nn.Module]] = {}
    for module in model.modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                owners.setdefault(parameter, []).append(module)
    return {
        parameter: modules[0]
        for parameter, modules in owners.items()
        if len(modules) == 1
        and type(modules[0]) is nn.Embedding
        and not modules[0].sparse
        and any(parameter is trained for trained in parameters)
    }
