"""What the tests on several ranks share: a model, a reference without any of the engine's loop, uneven shares."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import engine
from engine.config import ModelConfig
from engine.input import ReviewSource
from engine.losses import ReviewLoss
from engine.model import ReviewModel

SIZE = ModelConfig(embedding_size=6, hidden_size=5, ngram_entries=500, dropout=0.0)
BATCH = 48
STEPS = 25
"""of an epoch"""
OPTIMIZERS = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.3, momentum=0.9),
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=0.01),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=0.01, weight_decay=0.05),
}


def make_model(data: engine.Dataset, dtype: torch.dtype = torch.float64) -> ReviewModel:
    torch.manual_seed(3)
    return ReviewModel(SIZE, data.ids).to(dtype)


def make_plan(data: engine.Dataset, batch_size: int = BATCH) -> engine.Plan:
    return engine.Plan(layout=data.layout, batch_size=batch_size, seed=11)


def uneven(size: int) -> tuple[float, ...]:
    """Proportions for this many ranks; from two ranks on, one of them has no rows at all."""
    return {1: (1,), 2: (1, 0), 3: (5, 0, 2), 4: (7, 1, 0, 3)}[size]


class Drifting(ReviewLoss):
    """What unlike hardware does, in large: the last rank's weights drift in step 8, where it has rows."""

    def __init__(self, trainer: Callable[[], engine.Trainer]) -> None:
        super().__init__(SIZE)
        self._trainer = trainer

    def __call__(self, scores: torch.Tensor, target_B: torch.Tensor) -> torch.Tensor:
        trainer = self._trainer()
        if trainer.session.rank == trainer.session.size - 1 and trainer.progress.total_steps == 7:
            trainer.model.head.bias.data += 1e-3
        return super().__call__(scores, target_B)


def losses_of(events: list[dict[str, Any]]) -> list[float]:
    return [event["loss"] for event in events if event["event"] == "step"]


def train(
    folder: Path,
    session: engine.Session,
    optimizer: str,
    epochs: int,
    *,
    dtype: torch.dtype = torch.float64,
    weights: tuple[float, ...] | None = None,
    clip_norm: float = 0.0,
    **options: Any,
) -> tuple[list[float], engine.Trainer]:
    """Train with the engine; the loss of every step, known to all ranks."""
    with engine.open(folder) as data:
        model = make_model(data, dtype)
        events: list[dict[str, Any]] = []
        trainer = engine.Trainer(
            model,
            ReviewLoss(SIZE, weights),
            OPTIMIZERS[optimizer](model.parameters()),
            make_plan(data),
            session,
            precision="float64" if dtype == torch.float64 else "float32",
            log_every=1,
            clip_norm=clip_norm,
            hooks=engine.Hooks(record=events.append),
            **options,
        )
        trainer.fit(data, epochs)
    return session.comm.bcast(losses_of(events), root=0), trainer


def train_alone(
    folder: Path,
    session: engine.Session,
    optimizer: str,
    epochs: int,
    *,
    dtype: torch.dtype = torch.float64,
    weights: tuple[float, ...] | None = None,
    clip_norm: float = 0.0,
) -> tuple[list[float], torch.nn.Module]:
    """The oracle: whole batches on rank 0 alone, the textbook loop, none of the engine's exchange or shares."""
    if not session.root:
        known: tuple[list[float], torch.nn.Module] = session.comm.bcast(None, root=0)
        return known
    losses = []
    with engine.open(folder) as data:
        model, plan = make_model(data, dtype), make_plan(data)
        step, function = OPTIMIZERS[optimizer](model.parameters()), ReviewLoss(SIZE, weights)
        for epoch in range(epochs):
            for batch in plan.epoch(epoch):
                rows = data.read_bucket(batch.bucket, plan.rows(epoch, batch))
                target = (torch.from_numpy(rows.stars) >= 4).long()
                per_row = function(model(torch.from_numpy(rows.tokens), torch.from_numpy(rows.lengths)), target)
                weight = function.row_weights(target)
                weight = torch.ones_like(per_row) if weight is None else weight.to(per_row.dtype)
                loss = (per_row * weight).sum() / weight.sum()
                step.zero_grad()
                loss.backward()
                if clip_norm:
                    norm = torch.sqrt(sum((p.grad.double() ** 2).sum() for p in model.parameters()))
                    if norm > clip_norm:
                        for parameter in model.parameters():
                            parameter.grad *= clip_norm / norm
                step.step()
                losses.append(float(loss.detach()))
    session.comm.bcast((losses, model), root=0)
    return losses, model


def fit(
    dataset: Path,
    session: engine.Session,
    make: Callable[[engine.Dataset], torch.nn.Module],
    epochs: int = 2,
    *,
    optimizer: str = "adam",
    loss: Any = None,
    source: Callable[[ReviewSource], Any] = lambda source: source,
    batch_size: int = BATCH,
    **options: Any,
) -> tuple[list[dict[str, Any]], engine.Trainer]:
    """Train a model in float64; all events, known to all ranks."""
    events: list[dict[str, Any]] = []
    with engine.open(dataset) as data:
        model, plan = make(data).double(), make_plan(data, batch_size)
        trainer = engine.Trainer(
            model,
            loss or ReviewLoss(SIZE),
            OPTIMIZERS[optimizer](model.parameters()),
            plan,
            session,
            precision="float64",
            log_every=1,
            hooks=engine.Hooks(record=events.append),
            **options,
        )
        # The model may want to know which step it is.
        model.progress = trainer.progress
        trainer.fit(source(ReviewSource(data, plan)), epochs)
    return session.comm.bcast(events, root=0), trainer


def of_kind(events: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [event for event in events if event["event"] == kind]


def assert_same_losses(found: list[float], expected: list[float], tolerance: float = 1e-10) -> None:
    assert len(found) == len(expected) > 20
    difference = np.max(np.abs(np.array(found) - expected) / np.abs(expected))
    assert difference <= tolerance, f"relative difference {difference:.3g}"


def only_several(session: engine.Session) -> None:
    if session.size == 1:
        pytest.skip("one rank has nobody to share with")


def run_job(
    session: engine.Session, ranks: int, script: str, *arguments: object, seconds: float = 300
) -> tuple[int | None, str, str]:
    """Run a script under mpirun as a job of its own, started by rank 0; status, output and errors, known to all ranks.

    The status is None where the job did not end in time.
    """
    found: tuple[int | None, str, str] | None = None
    if session.root:
        launcher = ("OMPI_", "PMIX_", "PMI_", "ORTE_", "HOROVOD_", "ENGINE_")
        clean = {name: value for name, value in os.environ.items() if not name.startswith(launcher)}
        allowed = {name: value for name, value in os.environ.items() if name.startswith("OMPI_ALLOW_RUN_AS_ROOT")}
        mpirun = Path(sys.executable).parent / "mpirun"
        command = [mpirun if mpirun.exists() else "mpirun", "--oversubscribe", "--bind-to", "none", "-n", ranks]
        try:
            job = subprocess.run(
                [str(word) for word in (*command, sys.executable, "-c", script, *arguments)],
                env=clean | allowed,
                cwd=Path(__file__).parents[2],
                capture_output=True,
                text=True,
                timeout=seconds,
                check=False,
            )
            found = job.returncode, job.stdout, job.stderr
        except subprocess.TimeoutExpired:
            found = None, "", ""
    # The others sleep meanwhile: the job needs the cores.
    request = session.comm.Ibarrier()
    while not request.Test():
        time.sleep(0.01)
    known: tuple[int | None, str, str] = session.comm.bcast(found, root=0)
    return known
