"""A signal to any rank stops all of them after the same step, saved; going on from there leaves no trace."""

from __future__ import annotations

import signal
from typing import Any

import pytest
import torch
from helpers import BATCH, OPTIMIZERS, SIZE, STEPS, losses_of, make_plan, uneven

import engine
from engine.checkpoint import weights_digest
from engine.config import ModelConfig
from engine.errors import Preempted
from engine.losses import ReviewLoss
from engine.model import ReviewModel
from engine.shares import proportional_shares

pytestmark = pytest.mark.mpi

WITH_DROPOUT = ModelConfig(embedding_size=6, hidden_size=5, ngram_entries=500, dropout=0.3)


class Run:
    """A trainer, what it has recorded, and what it has saved."""

    def __init__(self, dataset: Any, session: engine.Session, stop_at: int = 0, on: int = 0, **options: Any) -> None:
        self.session, self.data, self.stop_at, self.on = session, engine.open(dataset), stop_at, on
        torch.manual_seed(3)
        model = ReviewModel(WITH_DROPOUT, self.data.ids)
        self.events: list[dict[str, Any]] = []
        self.saved: list[Any] = []
        self.trainer = engine.Trainer(
            model,
            ReviewLoss(SIZE),
            OPTIMIZERS["adam"](model.parameters()),
            make_plan(self.data),
            session,
            log_every=1,
            average_decay=0.9,
            shares=uneven(session.size),
            hooks=engine.Hooks(record=self.events.append, save=self.save, stop_asked=self.stop_asked),
            **options,
        )

    def stop_asked(self) -> int:
        step = self.trainer.progress.total_steps + 1
        return signal.SIGUSR1 if step == self.stop_at and self.session.rank == self.on else 0

    def save(self, figures: dict[str, Any] | None) -> None:
        tensors, values = self.trainer.state()
        self.saved.append(({name: tensor.clone() for name, tensor in tensors.items()}, values))

    def load(self, saved: Any) -> None:
        # Rank 0 reads the checkpoint for all.
        tensors, values = self.session.comm.bcast(saved, root=0)
        self.trainer.load_state(tensors, values)

    def fit(self) -> None:
        self.trainer.fit(self.data, 2)


@pytest.fixture(scope="module")
def undisturbed(session, dataset):
    run = Run(dataset, session)
    run.fit()
    return run


@pytest.mark.parametrize("step", [1, 2, STEPS - 1, STEPS, STEPS + 1, 2 * STEPS - 1, 2 * STEPS])
def test_stopped_after_any_step_and_gone_on_is_as_if_undisturbed(session, dataset, undisturbed, step):
    on = step % session.size
    stopped = Run(dataset, session, step, on)
    with pytest.raises(Preempted, match=f"stopped by SIGUSR1 after step {step}, which is saved") as error:
        stopped.fit()
    assert error.value.status == 138
    assert stopped.trainer.progress.total_steps == step
    again = Run(dataset, session)
    again.load(stopped.saved[-1])
    again.fit()
    if session.root:
        assert losses_of(stopped.events) + losses_of(again.events) == losses_of(undisturbed.events)
        epochs = [
            [(e["epoch"], e["train_loss"], e["rows"]) for e in events if e["event"] == "epoch"]
            for events in (stopped.events + again.events, undisturbed.events)
        ]
        assert epochs[0] == epochs[1]
    assert weights_digest(again.trainer.model) == weights_digest(undisturbed.trainer.model)
    assert weights_digest(again.trainer.trained) == weights_digest(undisturbed.trainer.trained)


def test_a_step_of_sigterm_and_sigusr1_on_two_ranks_ends_with_one_status(session, dataset):
    run = Run(dataset, session, 3, 0)
    both = {0: signal.SIGUSR1, session.size - 1: signal.SIGTERM}
    run.trainer.hooks.stop_asked = lambda: both.get(session.rank, 0) if run.trainer.progress.total_steps == 2 else 0
    with pytest.raises(Preempted) as error:
        run.fit()
    assert error.value.status == 143
    assert session.comm.allgather(error.value.status) == [143] * session.size


def test_shares_that_fit_are_kept(session, dataset):
    """By hand they are this run's own."""
    run = Run(dataset, session, 2)
    with pytest.raises(Preempted):
        run.fit()
    assert run.trainer.shares == proportional_shares(uneven(session.size), BATCH)
