"""Invariants 1 and 3: the trajectory is that of one process with whole batches, whatever the ranks and the split."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import BATCH, OPTIMIZERS, make_model, make_plan, train, train_alone, uneven

import engine
from engine.balance import Decision
from engine.exchange import Control, GradientExchange
from engine.losses import ReviewLoss
from engine.shares import proportional_shares

pytestmark = pytest.mark.mpi
EPOCHS = 8  # of 25 steps


def assert_close(found: list[float], expected: list[float], tolerance: float) -> None:
    assert len(found) == len(expected) == 200
    difference = np.max(np.abs(np.array(found) - expected) / np.abs(expected))
    assert difference <= tolerance, f"relative difference {difference:.3g}"


@pytest.mark.parametrize("optimizer", list(OPTIMIZERS))
def test_float64_even_and_uneven_with_a_rank_of_no_rows(session, dataset, optimizer):
    expected, model = train_alone(dataset, session, optimizer, EPOCHS)
    for proportions in ((), uneven(session.size)):
        found, trainer = train(dataset, session, optimizer, EPOCHS, balance="off", shares=proportions)
        assert sum(trainer.shares) == BATCH
        assert session.size == 1 or not proportions or 0 in trainer.shares
        assert_close(found, expected, 1e-10)
        for ours, theirs in zip(trainer.model.parameters(), model.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-10)


def test_float64_with_class_weights_and_clipping(session, dataset):
    options = {"weights": (3.0, 0.25), "clip_norm": 0.05}
    expected, _ = train_alone(dataset, session, "adam", EPOCHS, **options)
    found, _ = train(dataset, session, "adam", EPOCHS, balance="off", shares=uneven(session.size), **options)
    assert_close(found, expected, 1e-10)


def test_float32_with_sgd(session, dataset):
    expected, _ = train_alone(dataset, session, "sgd", EPOCHS, dtype=torch.float32)
    found, _ = train(dataset, session, "sgd", EPOCHS, dtype=torch.float32, balance="off", shares=uneven(session.size))
    assert_close(found, expected, 1e-5)


def test_shares_that_change_inside_epochs_change_nothing(session, dataset, monkeypatch):
    expected, _ = train_alone(dataset, session, "adam", EPOCHS)
    used = []

    def scripted(balancer, step, window, most_threshold=1.0):
        """Another split at every look, and in every bucket: what a nervous balancer would do."""
        weights = np.roll(np.arange(session.size) ** 2, len(used)).tolist()
        chosen = proportional_shares(weights, BATCH)
        used.append(chosen)
        balancer.table = (chosen, *(proportional_shares(weights[::-1], BATCH) for _ in balancer.bounds[1:]))
        return Decision(balancer.table, True, "scripted", 0.5)

    monkeypatch.setattr("engine.balance.Balancer.decide", scripted)
    found, _ = train(dataset, session, "adam", EPOCHS, balance="auto", rebalance_every=3)
    if session.size > 1:
        assert session.comm.bcast(len(set(used)), root=0) == session.size
    assert_close(found, expected, 1e-10)


def test_the_summed_gradient_is_that_of_the_whole_batch(session, dataset):
    """Directly, before any optimiser: with class weights, on a short batch, at uneven shares."""
    loss = ReviewLoss(engine.config.ModelConfig(dropout=0.0), (3.0, 0.25))
    shares = proportional_shares(uneven(session.size), BATCH)
    with engine.open(dataset) as data:
        plan = make_plan(data)
        short = [batch for batch in plan.epoch(0) if batch.rows < BATCH]
        assert short
        for batch in [*short, plan.batch(0, 0)]:

            def gradient(
                rows: np.ndarray, model: torch.nn.Module, batch: engine.plan.GlobalBatch = batch
            ) -> tuple[float, float]:
                if not len(rows):
                    return 0.0, 0.0
                read = data.read_bucket(batch.bucket, rows)
                target = (torch.from_numpy(read.stars) >= 4).long()
                losses = loss(model(torch.from_numpy(read.tokens), torch.from_numpy(read.lengths)), target)
                weights = loss.row_weights(target)
                ((losses * weights).sum() / batch.rows).backward()
                return float((losses * weights).detach().sum()), float(weights.sum())

            whole = make_model(data)
            _, weight = gradient(plan.rows(0, batch), whole)
            model = make_model(data)
            exchange = GradientExchange(model, session)
            local = gradient(plan.local_rows(0, batch, shares, session.rank), model)
            total = exchange.sum_over_ranks(*local, Control())
            exchange.scale(batch.rows / total.weight)
            for ours, theirs in zip(model.parameters(), whole.parameters(), strict=True):
                expected = theirs.grad * batch.rows / weight
                torch.testing.assert_close(ours.grad, expected, rtol=1e-12, atol=1e-15)


def test_a_mean_loss_is_refused_in_words(session, dataset):
    with engine.open(dataset) as data:
        model = make_model(data)
        trainer = engine.Trainer(
            model,
            lambda scores, target: scores.sum(),
            OPTIMIZERS["sgd"](model.parameters()),
            make_plan(data),
            session,
            precision="float64",
        )
        with pytest.raises(ValueError, match="reduction='none'"):
            trainer.fit(data, 1)
