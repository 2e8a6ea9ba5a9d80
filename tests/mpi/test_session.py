"""Start-up: all ranks agree or all are told who differs; a loss that is no number stops all."""

from __future__ import annotations

import pytest
import torch
from helpers import OPTIMIZERS, SIZE, make_model, make_plan, only_several

import engine
import engine.run
from engine.command_line import parse_train_config
from engine.losses import ReviewLoss
from tests.synthetic import write_dataset

pytestmark = pytest.mark.mpi


def test_ranks_that_differ_are_told_apart_by_rank_and_field(session):
    session.agree({"dataset digest": "abc", "options": {"a": 1}})
    if session.size > 1:
        odd = session.size - 1
        with pytest.raises(engine.UsageError, match=rf"disagree on dataset digest: rank 0 .* rank {odd}"):
            session.agree({"options": 1, "dataset digest": "other" if session.rank == odd else "abc"})


def test_an_error_of_one_rank_is_raised_on_all(session):
    session.together(None)
    error = ValueError("no such file") if session.rank == session.size - 1 else None
    with pytest.raises(engine.UsageError, match="no such file"):
        session.together(error)


def test_a_loss_that_is_not_finite_stops_all_ranks_before_the_step(session, dataset):
    bad = session.size - 1

    class Poisoned(ReviewLoss):
        steps = 0

        def __call__(self, scores, target):
            self.steps += 1
            return super().__call__(scores, target) * (float("nan") if self.steps == 4 and session.rank == bad else 1.0)

    with engine.open(dataset) as data:
        model = make_model(data)
        trainer = engine.Trainer(
            model,
            Poisoned(SIZE),
            OPTIMIZERS["adam"](model.parameters()),
            make_plan(data),
            session,
            precision="float64",
            balance="off",
        )
        with pytest.raises(engine.TrainingError, match=f"step 4: the loss of rank {bad} is not a finite number"):
            trainer.fit(data, 1)
    assert trainer.progress.total_steps == 3
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())


@pytest.mark.parametrize(
    "options", [{"shares": (1, 2, 3, 4, 5)}, {"rank_caps": (1, 1, 1, 1, 1)}, {"rank_caps": "small"}]
)
def test_options_for_another_number_of_ranks_are_refused(session, dataset, options):
    if options["rank_caps" if "rank_caps" in options else "shares"] == "small":
        options = {"rank_caps": (1,) * session.size}
    with engine.open(dataset) as data:
        model = make_model(data)
        with pytest.raises(engine.UsageError, match=r"5 ranks|raise a cap"):
            engine.Trainer(
                model,
                ReviewLoss(SIZE),
                OPTIMIZERS["sgd"](model.parameters()),
                make_plan(data),
                session,
                balance="off",
                **options,
            )


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("version of native modules", "version"),
        ("version of torch", "version"),
        ("dataset digest", "data"),
        ("--batch-size", "option"),
    ],
)
def test_a_run_of_ranks_that_differ_ends_before_any_training(session, dataset, tmp_path, monkeypatch, field, change):
    only_several(session)
    odd = session.rank == session.size - 1
    folder = dataset
    if odd and change == "data":
        folder = tmp_path / "other"
        write_dataset(folder, seed=6)
    if odd and change == "version":
        versions = engine.run._versions() | {field.removeprefix("version of "): "another"}
        monkeypatch.setattr("engine.run._versions", lambda: versions)
    out = session.comm.bcast(str(tmp_path / "run"), root=0)
    options = ["--data", str(folder), "--out", out, "--batch-size", "96" if odd and change == "option" else "48"]
    with pytest.raises(engine.UsageError) as error:
        engine.run.Run(parse_train_config(options), session)
    assert f"the ranks disagree on {field}: rank 0 on " in str(error.value)
    assert f"rank {session.size - 1} on " in str(error.value)
