"""A loss or gradient that is not a finite number is found before the step is applied, with rank and rows."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from helpers import BATCH, fit, make_model, make_plan, of_kind, uneven
from torch import Tensor, nn

import engine
from engine.errors import TrainingError
from engine.shares import proportional_shares

pytestmark = pytest.mark.mpi

BROKEN = (137, 912)
"""rows of the training split"""


class Broken(nn.Module):
    """Gives no finite number, or no finite gradient, for some rows."""

    def __init__(self, data: engine.Dataset, rows: tuple[int, ...], in_gradient: bool) -> None:
        super().__init__()
        self.inner, self._in_gradient = make_model(data), in_gradient
        whole = data.read(list(rows))
        self._known = [row[:length].tolist() for row, length in zip(whole.tokens, whole.lengths, strict=True)]

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        output: Tensor = self.inner(tokens, lengths)
        bad = [row[:length].tolist() in self._known for row, length in zip(tokens, lengths, strict=True)]
        at = torch.tensor(bad)[:, None] if output.ndim == 2 else torch.tensor(bad)
        if self._in_gradient:
            # The root of 0 is 0, and its slope is infinite.
            difference = torch.where(at, output - output.detach(), torch.ones_like(output))
            return output + torch.where(at, torch.sqrt(difference), torch.zeros_like(output))
        return torch.where(at, torch.full_like(output, math.nan), output)


def place_of(dataset: Any, row: int, session: engine.Session) -> tuple[int, int]:
    """In which step of the first epoch a row comes, counted from 1, and on which rank."""
    with engine.open(dataset) as data:
        plan = make_plan(data)
        bucket = 0 if row < data.layout[0].rows else 1
        inside = row - (data.layout[0].rows if bucket else 0)
        shares = proportional_shares(uneven(session.size), BATCH)
        for step, batch in enumerate(plan.epoch(0), start=1):
            if batch.bucket == bucket:
                for rank in range(session.size):
                    if inside in plan.local_rows(0, batch, shares, rank):
                        return step, rank
    raise AssertionError("every row comes once an epoch")


@pytest.mark.parametrize("in_gradient", [False, True])
def test_the_run_stops_with_step_rank_and_row(session, dataset, in_gradient):
    step, rank = place_of(dataset, BROKEN[0], session)
    with pytest.raises(TrainingError) as error:
        fit(dataset, session, lambda data: Broken(data, BROKEN[:1], in_gradient), shares=uneven(session.size))
    text = str(error.value)
    assert text.startswith(
        f"step {step}: the loss or gradient is not a finite number on rank {rank} in the training rows {BROKEN[0]}, "
    )
    assert "was not applied" in text
    # Every rank says the same.
    assert session.comm.allgather(text) == [text] * session.size


def test_what_went_before_stands_and_the_broken_step_does_not(session, dataset):
    """The weights at the stop are those after the step before."""
    step, _ = place_of(dataset, BROKEN[0], session)
    kept: dict[str, Any] = {}

    class Watched(Broken):
        def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
            kept.setdefault(self.progress.total_steps, engine.checkpoint.weights_digest(self))
            kept["model"] = self
            return super().forward(tokens, lengths)

    with pytest.raises(TrainingError):
        fit(dataset, session, lambda data: Watched(data, BROKEN[:1], False), balance="off")
    if step - 1 in kept:
        assert engine.checkpoint.weights_digest(kept["model"]) == kept[step - 1]


def test_skipped_steps_are_counted_named_and_leave_no_trace(session, dataset):
    places = [place_of(dataset, row, session) for row in BROKEN]
    events, trainer = fit(
        dataset,
        session,
        lambda data: Broken(data, BROKEN, False),
        1,
        shares=uneven(session.size),
        on_nonfinite="skip",
    )
    found = of_kind(events, "nonfinite")
    expected: dict[int, dict[str, list[int]]] = {}
    for row, (step, rank) in zip(BROKEN, places, strict=True):
        expected.setdefault(step, {}).setdefault(str(rank), []).append(row)
    assert {event["step"]: event["rows"] for event in found} == expected
    assert found[-1]["skipped"] == trainer.progress.nonfinite == len(expected)
    (epoch,) = of_kind(events, "epoch")
    assert epoch["nonfinite_steps"] == len(expected)
    assert math.isfinite(epoch["train_loss"])
    assert all(parameter.isfinite().all() for parameter in trainer.model.parameters())


def test_a_model_that_is_broken_for_good_is_not_skipped_for_ever(session, dataset):
    class Hopeless(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scores = nn.Embedding(62, 1)

        def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
            return self.scores(tokens).sum(dim=(1, 2)) * math.inf

    with pytest.raises(TrainingError, match="50 steps were left out one after the other"):
        fit(dataset, session, lambda data: Hopeless(), 3, on_nonfinite="skip", balance="off")
