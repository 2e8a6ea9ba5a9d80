"""A loss or gradient that is not a finite number: which rank's, and which rows make it so."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from engine.compute import LocalWork
from engine.errors import TrainingError
from engine.exchange import Control, GradientExchange
from engine.input import LocalBatch
from engine.plan import Plan
from engine.session import Session
from engine.shares import Table

MOST_NAMED = 10
"""rows that are looked for on a rank"""
MOST_IN_A_ROW = 50
"""steps that are skipped one after the other before the run stops all the same: it is the weights that are broken"""


class NonFinite:
    """Meets steps whose summed loss or gradient is not finite, before they are applied.

    Args:
        session, plan, work, exchange: see Trainer.
        mode: "stop" or "skip".
    """

    def __init__(self, session: Session, plan: Plan, work: LocalWork, exchange: GradientExchange, mode: str) -> None:
        self._session, self._plan, self._work, self._exchange = session, plan, work, exchange
        self._mode, self._in_a_row = mode, 0

    def none(self) -> None:
        """A step was finite."""
        self._in_a_row = 0

    def meet(self, total: Control, batch: LocalBatch, table: Table, epoch: int, step: int) -> dict[str, Any]:
        """Find out whose rows they are; the step is to be left out. Collective.

        Args:
            total: of all ranks.
            batch: this rank's rows.
            table: shares of the batch.
            epoch: from 0.
            step: steps done since training began.

        Returns:
            The "nonfinite" event.

        Raises:
            TrainingError: on every rank: the run is to stop.
        """
        whole = batch.whole
        positions = self._bad_positions(batch, step)
        own = self._plan.local_rows(epoch, whole, table[whole.bucket], self._session.rank)
        first = sum(shape.rows for shape in self._plan.layout[: whole.bucket])
        mine = tuple(first + int(own[position]) for position in positions)
        everyone = self._session.comm.allgather(mine)
        text = f"step {step + 1}: {told(everyone, total)}"
        self._in_a_row += 1
        if self._mode == "stop":
            raise TrainingError(
                f"{text}, so the step was not applied; the last checkpoint is good: look at these rows, or go on from "
                "it with a lower --learning-rate or --clip-norm, or with --on-nonfinite skip"
            )
        if self._in_a_row >= MOST_IN_A_ROW:
            raise TrainingError(
                f"{text}; {self._in_a_row} steps were left out one after the other, so it is the weights that are "
                "broken; go on from an earlier checkpoint with a lower --learning-rate"
            )
        rows = {str(rank): list(rows) for rank, rows in enumerate(everyone) if rows}
        return {"event": "nonfinite", "step": step + 1, "rows": rows}

    def _bad_positions(self, batch: LocalBatch, step: int) -> list[int]:
        """Positions in this rank's slice whose loss or gradient is not finite by itself, MOST_NAMED at most.

        Found by computing the rows again, in halves.
        """
        found: list[int] = []
        pending = self._work.parts(batch)[::-1]
        while pending and len(found) < MOST_NAMED:
            part = pending.pop()
            if self._is_finite(batch, part, step):
                continue
            middle = (part.start + part.stop) // 2
            if part.stop - part.start == 1:
                found.append(part.start)
            else:
                pending += [slice(middle, part.stop), slice(part.start, middle)]
        self._exchange.clear()
        self._exchange.close()
        return found

    def _is_finite(self, batch: LocalBatch, part: slice, step: int) -> bool:
        self._exchange.clear()
        objective, loss, _ = self._work.forward(batch, part, step)
        if not math.isfinite(loss):
            return False
        objective.backward()
        return math.isfinite(self._exchange.norm())


def told(rows: Sequence[Sequence[int]], total: Control) -> str:
    """In words: whose loss or gradient it is.

    Args:
        rows: of each rank: numbers in the split, as Dataset.read takes them, or of the items of your own data.
        total: of all ranks.
    """
    parts = []
    for rank, mine in enumerate(rows):
        if mine:
            more = " and maybe more" if len(mine) == MOST_NAMED else ""
            parts.append(f"rank {rank} in the training rows {', '.join(map(str, mine))}{more}")
    if not parts and total.nonfinite:
        whose = f"rank {int(total.nonfinite_ranks) - 1}" if total.nonfinite == 1 else f"{int(total.nonfinite)} ranks"
        return f"the loss of {whose} is not a finite number, though it is when their rows are computed again"
    if not parts:
        return "the sum of the ranks' gradients is not a finite number, though each rank's own is"
    return f"the loss or gradient is not a finite number on {'; on '.join(parts)}"
