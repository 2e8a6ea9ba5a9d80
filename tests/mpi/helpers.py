"""What the tests on several ranks share: a model, a reference without any of the engine's loop, uneven shares."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

import engine
from engine.config import ModelConfig
from engine.losses import ReviewLoss
from engine.model import ReviewModel

SIZE = ModelConfig(embedding_size=6, hidden_size=5, dropout=0.0)
BATCH = 48
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
