"""What a rank computes of a step: forward and backward over its rows, micro-batch by micro-batch.

A micro-batch has the size at which this rank is fastest per row, or what its memory holds; gradients add up, so that
the sum is that of all rows at once. Where the exchange overlaps, the last micro-batch is a short one and the others are
sent while it computes.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from engine.errors import RankError
from engine.exchange import GradientExchange
from engine.input import LocalBatch
from engine.precision import Precision
from engine.timing import ComputeTimer
from native.shuffle import derive_key

_DROPOUT = 3  # purpose of a key
LAST_PART = 3
"""an overlapped step's last phase has a row in so many: time enough to send what the first phase gave, by trials at
1 Gbit/s with 3, 4, 6, 8 and 16"""
LAST_LEAST = 16
"""but no fewer rows than this, which would be slow for their number; nor is a step of fewer than twice as many cut"""


class LocalWork:
    """Computes the sums of loss, weight and gradients of this rank's rows.

    Args:
        model, loss, precision: see Trainer.
        exchange: its gradients are added to, and it is told when a phase is over.
        timer: stands still while another rank is waited for.
        key: of the run (the plan's seed) and the rank: dropout masks are derived from both.
        micro_batch: most rows computed at once, whatever their length; 0 and -1 for no limit by hand.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Any,
        precision: Precision,
        exchange: GradientExchange,
        timer: ComputeTimer,
        key: tuple[int, int],
        micro_batch: int = 0,
    ) -> None:
        self._model, self._loss, self._precision, self._exchange = model, loss, precision, exchange
        self._timer, self._key, self.micro_batch = timer, key, micro_batch
        self.micro_steps = 0
        """most padded timesteps (rows times padded length) of a micro-batch; 0 for no limit"""
        self.most_rows = 0
        """rows of the batch at which memory ran out; 0 while it never did"""

    def run(self, batch: LocalBatch, step: int) -> tuple[Tensor | float, Tensor | float]:
        """Sums of the loss and of the weights of this rank's rows; gradients are left in the exchange.

        When memory runs out, the rows are computed again in smaller micro-batches; no other rank need know.

        Args:
            batch: this rank's rows, maybe none.
            step: number of the step since training began.

        Raises:
            RankError: there is no memory for a single row.
            ValueError: the loss did not return one number per row.
        """
        border = self._border(batch.rows)
        sent = False
        while True:
            try:
                if border is None:
                    return self._phase(batch, step, slice(0, batch.rows))
                first = self._phase(batch, step, slice(0, border), post=not sent)
                if sent:
                    self._exchange.drop_sent()
                else:
                    self._timer.pause()
                    self._exchange.send_early()
                    self._timer.resume()
                    sent = True
                last = self._phase(batch, step, slice(border, batch.rows))
                return first[0] + last[0], first[1] + last[1]
            except (MemoryError, RuntimeError) as error:
                if not out_of_memory(error):
                    raise
                self._shrink(batch, str(error), step)
            # Here, outside the except clause, nothing keeps the failed computation alive any more.
            self._exchange.clear_unsent()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def _border(self, rows: int) -> int | None:
        """Where the last phase begins; None where there is one phase only."""
        if not self._exchange.overlaps:
            return None
        return rows - max(LAST_LEAST, rows // LAST_PART) if rows >= 2 * LAST_LEAST else 0

    def _shrink(self, batch: LocalBatch, why: str, step: int) -> None:
        micro = self._most(batch)
        if micro <= 1:
            raise RankError(
                f"step {step + 1}: out of memory with a micro-batch of one row ({why}); this rank needs more memory, "
                "or the model must be smaller"
            )
        self.micro_steps, self.most_rows = micro // 2 * batch.bound, batch.rows

    def parts(self, batch: LocalBatch) -> list[slice]:
        """The micro-batches of a batch."""
        return cut(slice(0, batch.rows), self._most(batch))

    def _most(self, batch: LocalBatch) -> int:
        """Rows of a micro-batch at most."""
        limits = [batch.rows]
        if self.micro_batch > 0:
            limits.append(self.micro_batch)
        if self.micro_steps:
            limits.append(self.micro_steps // batch.bound)
        return max(1, min(limits))

    def _phase(
        self, batch: LocalBatch, step: int, rows: slice, post: bool = True
    ) -> tuple[Tensor | float, Tensor | float]:
        """Compute some of the rows; after the last forward pass it is known which rows of embeddings they touch."""
        loss: Tensor | float = 0.0
        weight: Tensor | float = 0.0
        parts = cut(rows, self._most(batch))
        for part in parts:
            objective, part_loss, part_weight = self.forward(batch, part, step)
            if post and part is parts[-1]:
                self._exchange.post()
            objective.backward()
            loss, weight = loss + part_loss, weight + part_weight
        if post and not parts:
            self._exchange.post()
        return loss, weight

    def forward(self, batch: LocalBatch, part: slice, step: int) -> tuple[Tensor, Tensor, Tensor | float]:
        """What backward starts from, and the sums of loss and weights of some rows of a batch."""
        # Keyed by step, rank and place, so that a resumed run draws the same dropout masks.
        torch.manual_seed(derive_key(self._key[0], _DROPOUT, step, self._key[1], part.start))
        rows = part.stop - part.start
        target = part_of(batch.target, part, batch.rows)
        with self._precision.context():
            losses = self._loss(self._model(*(part_of(item, part, batch.rows) for item in batch.inputs)), target)
        if losses.shape != (rows,):
            raise ValueError(
                f"the loss returned shape {tuple(losses.shape)} for {rows} rows; it must return one loss "
                "per row, or a rank's mean would count as much as another's of more rows: reduction='none'"
            )
        weights = self._loss.row_weights(target) if hasattr(self._loss, "row_weights") else None
        weighted = losses if weights is None else losses * weights.to(losses.dtype)
        # Divided by the rows of the whole batch, so that the sum over ranks is the whole batch's gradient.
        objective = weighted.sum() * (self._precision.scale / batch.whole.rows)
        weight = float(rows) if weights is None else weights.double().sum()
        return objective, weighted.detach().double().sum(), weight


def cut(rows: slice, most: int) -> list[slice]:
    """As few parts of at most so many rows as possible, as even as possible."""
    count = -(-(rows.stop - rows.start) // most) if rows.stop > rows.start else 0
    edges = [rows.start + (rows.stop - rows.start) * number // max(1, count) for number in range(count + 1)]
    return [slice(start, stop) for start, stop in pairwise(edges)]


def part_of(value: Any, part: slice, rows: int) -> Any:
    """Some rows of an input or target.

    Raises:
        ValueError: it is no tensor of one entry per row, so that it cannot be cut.
    """
    if part == slice(0, rows):
        return value
    if isinstance(value, Tensor) and value.ndim and len(value) == rows:
        return value[part]
    raise ValueError(
        f"a batch is to be computed in parts, but one of its inputs ({type(value).__name__}) is not a tensor with one "
        "entry per row; switch micro-batches off (micro_batch=-1) and overlapping too (exchange='dense')"
    )


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a GPU or on the host."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)
