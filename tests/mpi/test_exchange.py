"""Micro-batches, and gradients dense, by touched rows and in 16 bits, on real ranks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from helpers import (
    BATCH,
    SIZE,
    STEPS,
    assert_same_losses,
    fit,
    losses_of,
    make_model,
    of_kind,
    only_several,
    train,
    uneven,
)
from torch import nn

import engine
from engine.balance import Decision
from engine.losses import ReviewLoss
from engine.reduction import Reducer
from engine.shares import proportional_shares

pytestmark = pytest.mark.mpi


@pytest.mark.parametrize("balance", ["off", "auto"])
@pytest.mark.parametrize("exchange", ["dense", "rows"])
def test_micro_batches_change_nothing_in_the_trajectory(session, dataset, undisturbed, balance, exchange):
    events, trainer = fit(dataset, session, make_model, 2, micro_batch=7, balance=balance, exchange=exchange)
    assert_same_losses(losses_of(events), undisturbed)
    assert trainer._work.micro_batch == 7


class Twin(nn.Module):
    """Two embeddings of one size, the sums of which are scores."""

    def __init__(self, ids: int) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.one, self.other = nn.Embedding(ids, 3, padding_idx=0), nn.Embedding(ids, 3)
        self.head = nn.Linear(3, 1)

    def forward(self, tokens: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        # The second one looks up only few rows.
        mixed = self.one(tokens).mean(dim=1) * (1 + self.other(lengths.long() % 5))
        return self.head(torch.tanh(mixed)).squeeze(1)


class Tied(Twin):
    """The first embedding's weight is also what the scores are made with."""

    def __init__(self, ids: int) -> None:
        super().__init__(ids)
        self.out = nn.Linear(3, ids, bias=False)
        self.out.weight = self.one.weight

    def forward(self, tokens: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        return super().forward(tokens, lengths) + self.out(self.other(lengths.long() % 5)).mean(dim=1)


MODELS = {
    "one": make_model,
    "two": lambda data: Twin(data.ids),
    "tied": lambda data: Tied(data.ids),
}


@pytest.mark.parametrize(
    ("kind", "optimizer", "options"),
    [
        ("one", "sgd", {}),
        ("one", "adam", {"weights": (3.0, 0.25), "clip_norm": 0.05}),
        ("two", "adam", {}),
        ("two", "sgd", {"weights": (3.0, 0.25), "clip_norm": 0.05}),
        ("tied", "adam", {}),
    ],
    ids=["one-sgd", "one-adam-weights-clip", "two-adam", "two-sgd-weights-clip", "tied-adam"],
)
def test_gradients_by_touched_rows_give_the_very_same_trajectory(session, dataset, kind, optimizer, options):
    only_several(session)
    weights, clip_norm = options.get("weights"), options.get("clip_norm", 0.0)

    def losses(exchange: str, proportions: tuple[float, ...]) -> list[float]:
        events, trainer = fit(
            dataset,
            session,
            MODELS[kind],
            2,
            optimizer=optimizer,
            loss=ReviewLoss(SIZE, weights),
            clip_norm=clip_norm,
            balance="off",
            shares=proportions,
            exchange=exchange,
        )
        rows = exchange == "rows"
        assert trainer._exchange.method == ("rows" if rows else "dense")
        assert trainer._exchange.overlaps == rows
        # A tied weight is exchanged whole.
        assert len(trainer._exchange._rows) == ({"one": 2, "two": 2, "tied": 1}[kind] if rows else 0)
        assert not proportions or 0 in trainer.shares
        return losses_of(events)

    expected = losses("dense", ())
    for proportions in ((), uneven(session.size)):
        assert_same_losses(losses("rows", proportions), expected)


def test_no_two_tensors_of_a_step_travel_under_one_name(session, dataset, monkeypatch):
    """Mostly the first is there before the second is sent; on a slow network it is not."""
    only_several(session)
    send, wait = session.hvd.allreduce_async_, Reducer.wait
    travelling: list[str] = []
    steps: list[list[str]] = []

    def noting(tensor: torch.Tensor, *, op: Any, name: str) -> Any:
        travelling.append(name)
        return send(tensor, op=op, name=name)

    def waiting(reducer: Reducer) -> None:
        wait(reducer)
        steps.append(travelling.copy())
        travelling.clear()

    monkeypatch.setattr(session.hvd, "allreduce_async_", noting)
    monkeypatch.setattr(Reducer, "wait", waiting)
    # All rows on one rank: enough for two phases.
    fit(dataset, session, make_model, 1, balance="off", shares=[1.0] + [0.0] * (session.size - 1), exchange="rows")
    assert len(steps) >= STEPS
    assert all(len(set(names)) == len(names) for names in steps)


def test_shares_that_change_in_every_bucket_change_nothing_by_touched_rows(session, dataset, undisturbed, monkeypatch):
    only_several(session)
    used = []

    def scripted(balancer, step, window, most_threshold=1.0):
        weights = np.roll(np.arange(session.size) ** 2, len(used)).tolist()
        used.append(weights)
        balancer.table = (proportional_shares(weights, BATCH), proportional_shares(weights[::-1], BATCH))
        return Decision(balancer.table, True, "scripted", 0.5)

    monkeypatch.setattr("engine.balance.Balancer.decide", scripted)
    events, _ = fit(dataset, session, make_model, 2, rebalance_every=3, exchange="rows")
    assert_same_losses(losses_of(events), undisturbed)
    assert session.comm.bcast(len(used), root=0) > 12
    changes = [event for event in of_kind(events, "shares") if event["reason"] != "start"]
    assert {event["bucket"] for event in changes} == {8, 16}


def test_an_embedding_that_is_used_besides_its_module_is_told_on_all_ranks(session, dataset):
    only_several(session)

    class Odd(Twin):
        def forward(self, tokens: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
            used = super().forward(tokens, lengths)
            return used + nn.functional.linear(self.one(tokens[:, 0]), self.one.weight).sum(dim=1)

    with pytest.raises(engine.TrainingError, match=r"did not look up .* set --exchange dense"):
        fit(dataset, session, lambda data: Odd(data.ids), 1, balance="off", exchange="rows")
    dense = fit(dataset, session, lambda data: Odd(data.ids), 1, balance="off", exchange="dense")[0]
    assert len(of_kind(dense, "step")) == STEPS


def test_an_embedding_that_is_called_by_keyword_is_exchanged_by_rows(session, dataset):
    only_several(session)

    class Named(Twin):
        def forward(self, tokens: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
            return self.head(torch.tanh(self.one(input=tokens).mean(dim=1))).squeeze(1)

    dense, rows = (
        fit(dataset, session, lambda data: Named(data.ids), 1, balance="off", exchange=exchange)[0]
        for exchange in ("dense", "rows")
    )
    assert_same_losses(losses_of(rows), losses_of(dense))


@pytest.mark.parametrize("exchange", ["dense", "rows"])
def test_gradients_in_16_bits_train_closely(session, dataset, exchange):
    """Only float32 is rounded: in float64 nothing changes."""
    only_several(session)
    options = {"dtype": torch.float32, "balance": "off", "shares": uneven(session.size)}
    expected, _ = train(dataset, session, "sgd", 2, **options)
    found, _ = train(dataset, session, "sgd", 2, compression="fp16", exchange=exchange, **options)
    assert_same_losses(found, expected, 1e-2)
    assert found != expected
