"""Invariants 2, 4, 5 and 6 on real ranks: rows, shares, what is timed, and where figures come from."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
import torch
from helpers import BATCH, OPTIMIZERS, SIZE, make_model, make_plan, train, uneven

import engine
from engine.input import ReviewSource
from engine.losses import ReviewLoss
from engine.validation import measure

pytestmark = pytest.mark.mpi


class Noting(ReviewSource):
    """Notes which rows it was asked for."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.seen: list[tuple[int, int]] = []

    def __call__(self, bucket: int, rows: np.ndarray) -> Any:
        self.seen += [(bucket, int(row)) for row in rows]
        return super().__call__(bucket, rows)


def test_every_row_is_used_exactly_once_an_epoch(session, dataset):
    with engine.open(dataset) as data:
        for epochs, proportions in ((1, ()), (2, uneven(session.size))):
            model, plan = make_model(data), make_plan(data)
            source = Noting(data, plan)
            engine.Trainer(
                model,
                ReviewLoss(SIZE),
                OPTIMIZERS["sgd"](model.parameters()),
                plan,
                session,
                balance="off",
                shares=proportions,
                precision="float64",
            ).fit(source, epochs)
            everyone = session.comm.allgather(source.seen)
            expected = [(bucket, row) for bucket, shape in enumerate(data.layout) for row in range(shape.rows)]
            assert sorted(row for seen in everyone for row in seen) == sorted(expected * epochs)
            if proportions and session.size > 1:
                assert [] in everyone  # the rank without rows has read nothing


def test_shares_add_up_to_the_batch_and_stay_within_caps(session, dataset):
    caps = [BATCH // session.size + session.size] + [0] * (session.size - 1) if session.size > 1 else [BATCH]
    events: list[dict[str, Any]] = []
    with engine.open(dataset) as data:
        model = make_model(data)
        engine.Trainer(
            model,
            ReviewLoss(SIZE),
            OPTIMIZERS["sgd"](model.parameters()),
            make_plan(data),
            session,
            rebalance_every=5,
            rank_caps=caps,
            precision="float64",
            hooks=engine.Hooks(record=events.append),
        ).fit(data, 3)
    shares = [event["shares"] for event in events if event["event"] in ("shares", "epoch")]
    assert bool(shares) == session.root
    for share in shares:
        assert sum(share) == BATCH
        assert all(rows <= (cap or BATCH) for rows, cap in zip(share, caps, strict=True))


class Slowed(torch.nn.Module):
    """A model that takes this long for a row, and next to nothing of its own: sharing a core does not slow it."""

    def __init__(self, seconds_per_row: float) -> None:
        super().__init__()
        self.scores = torch.nn.Embedding(62, 1)
        self.seconds_per_row = seconds_per_row

    def forward(self, tokens: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        time.sleep(self.seconds_per_row * len(lengths))
        return self.scores(tokens).sum(dim=(1, 2))


def train_slowed(dataset, session, per_row: float, slow_input: float = 0.0, **options: Any) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = []
    with engine.open(dataset) as data:
        model, plan = Slowed(per_row), make_plan(data, 2 * BATCH)
        source = ReviewSource(data, plan)

        def delayed(bucket: int, rows: np.ndarray) -> Any:
            time.sleep(slow_input)
            return source(bucket, rows)

        engine.Trainer(
            model,
            ReviewLoss(SIZE),
            OPTIMIZERS["sgd"](model.parameters()),
            plan,
            session,
            hooks=engine.Hooks(record=events.append),
            **options,
        ).fit(delayed, 3)
    return session.comm.bcast(events, root=0)


@pytest.mark.parametrize("balance", ["epoch", "auto"])
def test_a_rank_slowed_threefold_gets_less_than_half_of_the_others(session, dataset, balance):
    if session.size == 1:
        pytest.skip("one rank has nobody to share with")
    slow = session.size - 1
    events = train_slowed(
        dataset, session, 0.006 if session.rank == slow else 0.002, balance=balance, rebalance_every=4
    )
    epochs = [event for event in events if event["event"] == "epoch"]
    for event in epochs[1:]:
        assert event["shares"][slow] < min(event["shares"][:slow]) / 2
    # The slowest rank of an even split would compute longest; now none stands out.
    assert max(epochs[-1]["compute_seconds"]) / np.mean(epochs[-1]["compute_seconds"]) < 1.3
    changes = [event for event in events if event["event"] == "shares" and event["predicted_gain"] > 0.2]
    assert changes
    assert f"rank {slow}" in changes[0]["reason"]
    # The start-up profile has shown it before the first step.
    assert changes[0]["step"] == 0
    assert "start-up profile" in changes[0]["reason"]


def test_a_rank_is_timed_by_its_own_work_and_not_by_waiting_or_input(session, dataset):
    if session.size == 1:
        pytest.skip("one rank waits for nobody")
    slow = session.size - 1
    events = train_slowed(dataset, session, 0.003 if session.rank == slow else 0.0, balance="off")
    last = [event for event in events if event["event"] == "epoch"][-1]
    for rank in range(slow):
        # It waits for the slow one, and that time is in wait, not in compute.
        assert last["compute_seconds"][rank] < last["compute_seconds"][slow] / 2
        assert last["wait_seconds"][rank] > last["compute_seconds"][slow] / 3
    assert last["wait_seconds"][slow] < last["compute_seconds"][slow] / 2
    events = train_slowed(dataset, session, 0.0005, slow_input=0.1 if session.rank == slow else 0.0, balance="epoch")
    last = [event for event in events if event["event"] == "epoch"][-1]
    assert last["input_seconds"][slow] > 2 * last["compute_seconds"][slow]
    assert last["input_seconds"][0] < last["input_seconds"][slow] / 2


def test_figures_come_from_summed_counts(session, dataset):
    """The figures of all ranks together are those of one process, to the last count."""
    _, trainer = train(dataset, session, "adam", 2)
    shares = engine.shares.proportional_shares(uneven(session.size), BATCH)

    def sum_over_ranks(values: np.ndarray) -> np.ndarray:
        total = np.empty_like(values)
        session.comm.Allreduce(values, total)
        return total

    with engine.open(dataset, "validation") as data:
        alone = measure(trainer.model, trainer.loss, data, BATCH, session.device)
        together = measure(
            trainer.model,
            trainer.loss,
            data,
            BATCH,
            session.device,
            rank=session.rank,
            shares=shares,
            sum_over_ranks=sum_over_ranks,
        )
    assert together["rows"] == 151
    assert together["confusion"] == alone["confusion"]
    assert together["macro_f1"] == alone["macro_f1"]
    assert together["loss"] == pytest.approx(alone["loss"], rel=1e-12)
    assert 0 < together["accuracy"] < 1


def test_the_train_loss_of_an_epoch_is_the_mean_over_its_rows(session, dataset):
    events: list[dict[str, Any]] = []
    with engine.open(dataset) as data:
        model = make_model(data)
        engine.Trainer(
            model,
            ReviewLoss(SIZE),
            OPTIMIZERS["sgd"](model.parameters()),
            make_plan(data),
            session,
            log_every=1,
            balance="off",
            shares=uneven(session.size),
            precision="float64",
            hooks=engine.Hooks(record=events.append),
        ).fit(data, 1)
        sizes = [batch.rows for batch in make_plan(data).epoch(0)]
    if session.root:
        losses = [event["loss"] for event in events if event["event"] == "step"]
        epoch = next(event for event in events if event["event"] == "epoch")
        assert epoch["train_loss"] == pytest.approx(np.average(losses, weights=sizes), rel=1e-12)
        assert epoch["rows"] == 1133
