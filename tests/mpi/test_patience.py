"""Training ends early, on all ranks together, when the validation split has shown nothing better for a while."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import engine
from engine.config import ModelConfig, TrainConfig
from engine.run import Run
from tests.synthetic import ROWS, write_dataset

pytestmark = pytest.mark.mpi


def run(session: engine.Session, data: Path, out: Path, **options: Any) -> int:
    """Epochs done after a run whose weights never change, so that no epoch is better than the first."""
    config = TrainConfig(
        data=str(data),
        out=str(out),
        batch_size=96,
        balance="off",
        optimizer="sgd",
        learning_rate=1e-30,
        model=ModelConfig(embedding_size=4, hidden_size=4, ngram_entries=500),
        **options,
    )
    work = Run(config, session)
    work.train()
    work.close()
    return work._trainer.progress.epoch


def events(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def shared(session: engine.Session, folder: Path) -> Path:
    return Path(session.comm.bcast(str(folder), root=0))


def test_patience_ends_training_and_a_resumed_run_knows_it(session, dataset, tmp_path):
    out = shared(session, tmp_path) / "run"
    assert run(session, dataset, out, epochs=6, patience=2) == 3
    assert run(session, dataset, out, epochs=6, patience=2) == 3  # finished already
    assert run(session, dataset, out, epochs=6, patience=3) == 4  # more patience goes on
    assert run(session, dataset, out, epochs=6) == 6
    if session.root:
        assert [event["epoch"] for event in events(out) if event["event"] == "epoch"] == [1, 2, 3, 4, 5, 6]
        assert events(out)[-1]["status"] == "finished"
    session.comm.Barrier()


def test_patience_without_a_validation_split_is_refused(session, tmp_path):
    folder = shared(session, tmp_path)
    if session.root:
        write_dataset(folder / "data", rows=dict(ROWS) | {"validation": (0, 0)})
    session.comm.Barrier()
    with pytest.raises(engine.UsageError, match=r"--patience 2: .* has no validation rows"):
        run(session, folder / "data", folder / "run", epochs=2, patience=2)


def test_the_falling_rate_is_that_of_one_rank_and_goes_on_after_a_checkpoint(session, dataset, tmp_path):
    """A run stopped by its epochs' end and gone on has the rates of its new number of epochs."""
    rates: list[float] = []
    out = shared(session, tmp_path) / "run"
    for epochs in (1, 3):
        config = TrainConfig(
            data=str(dataset),
            out=str(out),
            epochs=epochs,
            batch_size=96,
            balance="off",
            schedule="linear",
            learning_rate=0.5,
            warmup_steps=2,
            model=ModelConfig(embedding_size=4, hidden_size=4, ngram_entries=500),
        )
        work = Run(config, session)
        group = work._trainer.optimizer.param_groups[0]
        del rates[:]
        work._trainer.optimizer.register_step_pre_hook(lambda *_, group=group: rates.append(group["lr"]))
        work.train()
        steps = work._trainer.plan.steps_per_epoch
        work.close()
        begin, total = (epochs - 1) // 2 * steps, epochs * steps
        expected = [
            0.5 * ((step + 1) / 2 if step < 2 else 1 - (step - 2) / (total - 2)) for step in range(begin, total)
        ]
        assert rates == pytest.approx(expected)
