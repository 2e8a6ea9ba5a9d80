"""The trainer's edges on several ranks: what a user may get wrong, warm-up, and replicas that have drifted."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import BATCH, SIZE, Drifting, make_model, make_plan

import engine
from engine.checkpoint import weights_digest
from engine.losses import ReviewLoss

pytestmark = pytest.mark.mpi


def make_trainer(data: engine.Dataset, session: engine.Session, loss: Any = None, **options: Any) -> engine.Trainer:
    model = make_model(data)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    return engine.Trainer(
        model,
        loss or ReviewLoss(SIZE),
        optimizer,
        make_plan(data),
        session,
        precision="float64",
        balance="off",
        **options,
    )


def test_ranks_with_different_plans_or_options_are_told_and_do_not_hang(session, dataset):
    if session.size == 1:
        pytest.skip("one rank agrees with itself")
    odd = session.rank == session.size - 1
    with engine.open(dataset) as data:
        with pytest.raises(engine.UsageError, match="disagree on --clip-norm"):
            make_trainer(data, session, clip_norm=1.0 if odd else 2.0)
        model = make_model(data)
        plan = engine.Plan(rows=100 if odd else 160, batch_size=BATCH, seed=1)
        with pytest.raises(engine.UsageError, match="disagree on plan"):
            engine.Trainer(model, ReviewLoss(SIZE), torch.optim.SGD(model.parameters()), plan, session)
        with pytest.raises(engine.UsageError, match="disagree on epochs"):
            make_trainer(data, session).fit(data, 1 if odd else 2)


@pytest.mark.parametrize(
    "option",
    [{"exchange": "sparse"}, {"compression": "zip"}, {"schedule": "steps"}, {"on_nonfinite": "hope"},
     {"average_decay": 2.0}, {"precision": "int8"}, {"balance": "always"}],
)  # fmt: skip
def test_an_option_that_does_not_exist_is_refused(session, dataset, option):
    [(name, value)] = option.items()
    with engine.open(dataset) as data:
        model = make_model(data)
        optimizer = torch.optim.SGD(model.parameters())
        with pytest.raises(engine.UsageError, match=f"{name}={value!r}: give "):
            engine.Trainer(model, ReviewLoss(SIZE), optimizer, make_plan(data), session, **option)


def test_unlike_replicas_are_made_equal_at_the_end_of_an_epoch(session, dataset):
    events: list[dict[str, Any]] = []
    with engine.open(dataset) as data:
        trainer = make_trainer(data, session, Drifting(lambda: trainer), hooks=engine.Hooks(record=events.append))
        trainer.fit(data, 2)
    assert len(set(session.comm.allgather(weights_digest(trainer.model)))) == 1
    found = [event["ranks"] for event in events if event["event"] == "resync"]
    assert found == ([[session.size - 1]] if session.root and session.size > 1 else [])


def test_warm_up_raises_the_rate_and_then_leaves_it_to_the_user(session, dataset):
    rates = []
    with engine.open(dataset) as data:
        trainer = make_trainer(data, session, warmup_steps=4)
        group = trainer.optimizer.param_groups[0]
        trainer.optimizer.register_step_pre_hook(lambda *_: rates.append(group["lr"]))
        trainer.optimizer.register_step_post_hook(lambda *_: group.update(lr=0.125) if len(rates) == 6 else None)
        trainer.fit(data, 1)
    assert rates[:7] == [0.125, 0.25, 0.375, 0.5, 0.5, 0.5, 0.125]
    assert set(rates[7:]) == {0.125}


def test_zero_grad_of_the_users_is_refused_in_words(session, dataset):
    class Clearing(ReviewLoss):
        def __call__(self, scores, target):
            trainer.optimizer.zero_grad()
            return super().__call__(scores, target)

    with engine.open(dataset) as data:
        trainer = make_trainer(data, session, Clearing(SIZE))
        with pytest.raises(ValueError, match="do not call zero_grad"):
            trainer.fit(data, 1)
