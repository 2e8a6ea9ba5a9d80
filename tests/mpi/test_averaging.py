"""The average of the weights: what it is, that ranks agree on it, and that it is what is measured and loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import SIZE, Drifting, losses_of, make_plan, uneven

import engine
from engine.checkpoint import load_checkpoint, weights_digest
from engine.config import ModelConfig, TrainConfig
from engine.evaluate import evaluate
from engine.losses import ReviewLoss
from engine.model import ReviewModel
from engine.run import Run

pytestmark = pytest.mark.mpi


def make_trainer(data: Any, session: engine.Session, loss: Any = None, **options: Any) -> engine.Trainer:
    torch.manual_seed(3)
    model = ReviewModel(SIZE, data.ids)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    options = {"shares": uneven(session.size), **options}
    loss = loss or ReviewLoss(SIZE)
    return engine.Trainer(model, loss, optimizer, make_plan(data), session, **options)


def test_it_is_the_average_of_the_weights_after_each_step_and_changes_nothing_else(session, dataset):
    """The mean is built anew here from all the weights there were, each with its part."""
    weights: list[dict[str, torch.Tensor]] = []

    def take(optimizer: Any, *_: Any) -> None:
        weights.append({name: value.detach().clone() for name, value in averaging.model.named_parameters()})

    runs: dict[float, list[dict[str, Any]]] = {0.0: [], 0.6: []}
    with engine.open(dataset) as data:
        plain = make_trainer(data, session, log_every=1, hooks=engine.Hooks(record=runs[0.0].append))
        plain.fit(data, 1)
        averaging = make_trainer(
            data, session, average_decay=0.6, log_every=1, hooks=engine.Hooks(record=runs[0.6].append)
        )
        averaging.optimizer.register_step_post_hook(take)
        averaging.fit(data, 1)
    assert plain.trained is plain.model
    assert weights_digest(plain.model) == weights_digest(averaging.model)
    assert losses_of(runs[0.0]) == losses_of(runs[0.6])
    parts, left = [], 1.0
    for step in reversed(range(len(weights))):
        decay = min(0.6, (1 + step) / (10 + step)) if step else 0.0
        parts.append(left * (1 - decay))
        left *= decay
    assert sum(parts) == pytest.approx(1)
    for name, average in averaging.trained.named_parameters():
        expected = sum(part * weights[-1 - ago][name].double() for ago, part in enumerate(parts))
        torch.testing.assert_close(average.double(), expected, rtol=1e-5, atol=1e-7)
    assert len(set(session.comm.allgather(weights_digest(averaging.trained)))) == 1
    assert weights_digest(averaging.trained) != weights_digest(averaging.model)


def test_unlike_averages_are_made_equal_with_the_weights(session, dataset):
    with engine.open(dataset) as data:
        even = (1,) * session.size  # the rank that drifts has rows
        trainer = make_trainer(data, session, Drifting(lambda: trainer), average_decay=0.9, shares=even)
        trainer.fit(data, 1)
    assert len(set(session.comm.allgather(weights_digest(trainer.trained)))) == 1


def train(session: engine.Session, dataset: Any, out: Path, epochs: int = 2, **options: Any) -> Path:
    """The run's last checkpoint."""
    model = ModelConfig(embedding_size=6, hidden_size=5, ngram_entries=500)
    config = TrainConfig(
        data=str(dataset), out=str(out), epochs=epochs, batch_size=48, balance="off", model=model, **options
    )
    Run(config, session).train()
    session.comm.Barrier()
    return out / "checkpoints" / "last"


def test_the_average_is_validated_and_saved_and_loaded(session, dataset, tmp_path):
    out = Path(session.comm.bcast(str(tmp_path), root=0)) / "run"
    last = train(session, dataset, out)
    if not session.root:
        return
    events = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    validated = [event["validation"] for event in events if event["event"] == "epoch"][-1]
    found = evaluate(str(dataset), str(last), "validation", device="cpu")
    assert found["loss"] == pytest.approx(validated["loss"], rel=1e-5)
    assert found["confusion"] == validated["confusion"]
    saved = load_checkpoint(last)
    assert set(saved.part("average")) == set(saved.part("model"))
    assert any(not torch.equal(saved.part("average")[name], saved.part("model")[name]) for name in saved.part("model"))


def test_a_run_that_goes_on_has_the_average_of_one_that_never_stopped(session, dataset, tmp_path):
    folder = Path(session.comm.bcast(str(tmp_path), root=0))
    whole = train(session, dataset, folder / "whole", 3)
    train(session, dataset, folder / "parts", 1)
    parts = train(session, dataset, folder / "parts", 3)
    averages = [load_checkpoint(path).part("average") for path in (whole, parts)]
    assert all(torch.equal(averages[0][name], averages[1][name]) for name in averages[0])


def test_a_run_without_one_goes_on_with_one(session, dataset, tmp_path):
    """It begins with the weights there are, as from checkpoints older than the option."""
    out = Path(session.comm.bcast(str(tmp_path), root=0)) / "run"
    last = train(session, dataset, out, 1, average_decay=0.0)
    assert load_checkpoint(last).part("average") == {}
    session.comm.Barrier()
    first = load_checkpoint(train(session, dataset, out, 2))
    assert 0 < first.values["averaged_steps"] == first.values["progress"]["total_steps"] / 2
