"""Balancing on real ranks: slow-downs, idle ranks, starved ranks, looks near the end of a run."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from helpers import (
    BATCH,
    STEPS,
    fit,
    make_model,
    make_plan,
    of_kind,
    only_several,
)
from torch import nn

import engine
from engine.balance import Decision
from engine.input import READ_AHEAD, ReviewSource
from engine.progress import Progress
from engine.shares import proportional_shares

pytestmark = pytest.mark.mpi


class Sleeping(nn.Module):
    """Takes its time for tokens and for a start, next to nothing of its own: sharing a core does not slow it."""

    def __init__(self, seconds: Callable[[int, int], float]) -> None:
        super().__init__()
        self.scores = nn.Embedding(62, 1)
        self.seconds = seconds
        """of a token and of a start, by the steps done"""
        self.progress = Progress()

    def forward(self, tokens: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        per_token, start = self.seconds(self.progress.total_steps)
        time.sleep(start + per_token * tokens.numel())
        return self.scores(tokens).sum(dim=(1, 2))


@pytest.mark.parametrize("balance", ["auto", "epoch"])
def test_a_rank_that_slows_down_threefold_in_mid_run_gets_less(session, dataset, balance):
    only_several(session)
    slow, at = session.size - 1, 7

    def seconds(step: int) -> tuple[float, float]:
        return (1.5e-4 if step >= at and session.rank == slow else 5e-5) * session.size, 0.0

    events, _ = fit(dataset, session, lambda data: Sleeping(seconds), 2, balance=balance, rebalance_every=15)
    changes = [
        event
        for event in of_kind(events, "shares")
        if event["predicted_gain"] > 0.2 and event["step"] > at and not event["reason"].startswith("kept")
    ]
    assert changes
    first = changes[0]
    assert set(first) == {"event", "step", "bucket", "shares", "reason", "predicted_gain", "first_step", "changed"}
    assert first["reason"].startswith(f"rank {slow} was the slowest; its share goes from ")
    assert first["bucket"] in (None, 8, 16)
    assert sum(first["shares"]) == BATCH
    # Within a window, which is five looks of three steps.
    assert first["step"] == STEPS if balance == "epoch" else at < first["step"] <= at + 15
    assert first["first_step"] == first["step"] + READ_AHEAD + (1 if balance == "epoch" else 2)
    assert first["shares"][slow] < min(first["shares"][:slow]) / 1.8
    (last,) = [event for event in of_kind(events, "epoch") if event["epoch"] == 2]
    assert last["shares"][slow] < min(last["shares"][:slow]) / 2
    assert last["starved_ranks"] == []
    # What became of it is told, of the last change at least.
    gains = of_kind(events, "gain")
    assert gains
    assert {event["decided_at"] for event in gains} <= {event["step"] for event in of_kind(events, "shares")}
    assert all(gain["decided_at"] < gain["step"] for gain in gains)
    told = [gain for gain in gains if gain["decided_at"] == first["step"]]
    for gain in told:
        assert gain["predicted_gain"] == first["predicted_gain"]
        assert gain["achieved_gain"] < 1


def test_a_rank_without_rows_comes_back_when_it_has_become_fast(session, dataset):
    only_several(session)
    slow = session.size - 1

    # Long sleeps: what others do on the machine is little beside them. A try that is disturbed all the same is followed
    # by another after the next epoch.
    def seconds(step: int) -> tuple[float, float]:
        return 1.5e-4, 0.5 if session.rank == slow and step < 10 else 0.001

    events, _ = fit(dataset, session, lambda data: Sleeping(seconds), 6, balance="epoch")
    shares = [event["shares"][slow] for event in of_kind(events, "epoch")]
    assert shares[0] <= 1  # by the start-up profile: none, unless something else was slow then
    assert max(shares[1:]) > BATCH / session.size / 2


def test_a_rank_that_waits_for_its_input_is_named_and_keeps_its_share(session, dataset):
    only_several(session)
    hungry = session.size - 1

    def starved(source: ReviewSource) -> Any:
        def read(bucket: int, rows: np.ndarray) -> Any:
            time.sleep(0.12 if session.rank == hungry else 0.0)
            return source(bucket, rows)

        return read

    events, _ = fit(
        dataset,
        session,
        lambda data: Sleeping(lambda step: (2e-5 * session.size, 0.0)),
        2,
        source=starved,
        batch_size=2 * BATCH,
        rebalance_every=15,
    )
    for epoch in of_kind(events, "epoch"):
        assert epoch["starved_ranks"] == [hungry]
        assert epoch["shares"][hungry] == pytest.approx(2 * BATCH / session.size, rel=0.15)


def test_an_epoch_whose_last_look_ends_with_it_changes_shares_too(session, dataset, monkeypatch):
    """A look is taken while three steps are left, one of which is the last of the run."""
    only_several(session)
    for batch_size in (50, 48, 52):
        with engine.open(dataset) as data:
            steps = make_plan(data, batch_size).steps_per_epoch
        decided = []

        def scripted(balancer, step, window, most_threshold=1.0, batch_size=batch_size, decided=decided):
            decided.append(step)
            weights = np.roll(np.arange(session.size) + 1, len(decided)).tolist()
            balancer.table = (proportional_shares(weights, batch_size),) * len(balancer.bounds)
            return Decision(balancer.table, True, "scripted", 0.5)

        monkeypatch.setattr("engine.balance.Balancer.decide", scripted)
        for every in (3, 4, 5, 6, 7):
            looks = [step for step in range(1, steps) if step % every == 0 and 3 <= steps - step <= 6]
            if looks or every == 3:
                events, _ = fit(
                    dataset, session, make_model, 1, batch_size=batch_size, rebalance_every=every, optimizer="sgd"
                )
                assert len(of_kind(events, "step")) == steps


def test_ranks_with_different_options_of_balancing_are_told(session, dataset):
    only_several(session)
    odd = session.rank == session.size - 1
    for name, options in (
        ("--micro-batch", {"micro_batch": 7 if odd else 0}),
        ("--exchange", {"exchange": "rows" if odd else "dense"}),
        ("--compression", {"compression": "fp16" if odd else "none"}),
        ("--rebalance-every", {"rebalance_every": 20 if odd else 50}),
    ):
        with pytest.raises(engine.UsageError, match=f"disagree on {name}: rank 0"):
            fit(dataset, session, make_model, 1, **options)
