"""Memory that runs out on real ranks: smaller micro-batches, the same losses, and nobody left waiting."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import (
    BATCH,
    STEPS,
    assert_same_losses,
    fit,
    losses_of,
    make_model,
    make_plan,
    only_several,
    run_job,
)
from torch import nn

import engine
from engine.progress import Progress

pytestmark = pytest.mark.mpi


class Fail(torch.autograd.Function):
    """Runs out of memory in backward."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, error: Exception) -> torch.Tensor:
        ctx.error = error
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        raise ctx.error


class Limited(nn.Module):
    """A model with memory for so many rows at once.

    Args:
        inner: the model.
        limit: rows, by the steps done.
        error: what is raised beyond.
        where: "at once", at the end of "forward", or in "backward".
    """

    def __init__(self, inner: nn.Module, limit: Callable[[int], int], error: Exception, where: str) -> None:
        super().__init__()
        self.inner, self.limit, self.error, self.where = inner, limit, error, where
        self.progress = Progress()
        self.failed = 0

    def forward(self, tokens: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        short = self.training and len(tokens) > self.limit(self.progress.total_steps)
        self.failed += short
        if short and self.where == "at once":
            raise self.error
        if short and self.where == "forward":
            self.inner(tokens, lengths)  # what it has looked up must not be counted twice
            raise self.error
        scores = self.inner(tokens, lengths)
        return Fail.apply(scores, self.error) if short else scores


ERRORS = {
    "at once": MemoryError("no memory"),
    "forward": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    "backward": RuntimeError(
        "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"
    ),
}


@pytest.mark.parametrize("where", ["forward", "backward"])
@pytest.mark.parametrize("exchange", ["dense", "rows"])
def test_memory_that_runs_out_on_one_rank_changes_no_loss_and_fails_nobody(
    session, dataset, undisturbed, exchange, where
):
    odd = session.size - 1

    def limit(step: int) -> int:
        if session.rank != odd:
            return 1000
        return 3 if step >= 15 else 9 if step >= 7 else 1000

    events, trainer = fit(
        dataset,
        session,
        lambda data: Limited(make_model(data), limit, ERRORS[where], where),
        1,
        balance="off",
        exchange=exchange,
    )
    assert_same_losses(losses_of(events), undisturbed[:STEPS])
    found = session.comm.allgather((trainer.model.failed, trainer._work.micro_steps, trainer._work.most_rows))
    assert all(other == (0, 0, 0) for other in found[:odd])
    failed, micro_steps, most_rows = found[odd]
    # Only as often as it takes to find the size, and never again.
    assert 2 <= failed <= 8
    assert 16 <= micro_steps <= 3 * 16
    assert 0 < most_rows <= BATCH


class Wide(nn.Module):
    """Every row looks up words of its own: what one part of a batch touches another does not."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(6)
        self.words, self.head = nn.Embedding(5000, 3), nn.Linear(3, 1)

    def forward(self, tokens: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        place = torch.arange(1, tokens.shape[1] + 1)
        found = self.words((tokens.long() * place * 7919).cumsum(dim=1) % 5000)
        return self.head(torch.tanh(found.mean(dim=1))).squeeze(1)


@pytest.mark.parametrize("where", list(ERRORS))
def test_memory_that_runs_out_after_a_part_was_sent_sends_nothing_twice(session, dataset, where):
    odd = session.size - 1

    class Late(Limited):
        """Fails in the second forward pass of two steps, which is that of the rows that are exchanged last."""

        passes: tuple[int, int] = (-1, 0)

        def forward(self, tokens: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
            step = self.progress.total_steps
            self.passes = step, self.passes[1] + 1 if step == self.passes[0] else 1
            return super().forward(tokens, lengths)

    def limit(step: int) -> int:
        return 0 if session.rank == odd and step in (6, 11) and model.passes[1] == (2 if step == 6 else 3) else 1000

    def make(data: engine.Dataset) -> nn.Module:
        nonlocal model
        model = Late(Wide(), limit, ERRORS[where], where)
        return model

    model: Any = None
    shares = [1.0] * odd + [48.0 - odd]
    expected, _ = fit(dataset, session, lambda data: Wide(), 1, balance="off", exchange="dense")
    events, trainer = fit(dataset, session, make, 1, balance="off", shares=shares, exchange="rows")
    assert_same_losses(losses_of(events), losses_of(expected))
    assert session.size == 1 or trainer._exchange.overlaps
    assert session.comm.allgather(model.failed)[odd] == (2 if session.size > 1 else 0)


def test_memory_that_runs_out_lowers_what_the_rank_may_get(session, dataset, undisturbed):
    only_several(session)
    odd = session.size - 1

    class Quick(Limited):
        """Fast, so that its share would grow beyond its memory."""

        def forward(self, tokens: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
            time.sleep((2e-5 if session.rank == odd else 8e-5) * tokens.numel())
            return super().forward(tokens, lengths)

    def limit(step: int) -> int:
        return 8 if session.rank == odd and step >= 12 else 1000

    events, trainer = fit(
        dataset,
        session,
        lambda data: Quick(make_model(data), limit, ERRORS["forward"], "forward"),
        2,
        rebalance_every=15,
        exchange="dense",
    )
    assert_same_losses(losses_of(events), undisturbed)
    most_rows = session.comm.bcast(trainer._work.most_rows, root=odd)
    assert 0 < most_rows <= BATCH
    assert all(share[odd] <= most_rows for share in trainer.rebalancer.table)
    if session.root:
        assert trainer.rebalancer._balancer.caps[odd] == most_rows


def test_memory_that_is_short_on_all_ranks_at_once_leaves_room_for_the_batch(session, dataset, undisturbed):
    """A short batch that did not fit says nothing of what fits in micro-batches."""
    with engine.open(dataset) as data:
        rows = [batch.rows for batch in make_plan(data).epoch(0)]
    short = next(step for step, count in enumerate(rows) if 20 < count < BATCH)

    class Even(Limited):
        """Takes the same time on every rank, so that all have rows of the short batch."""

        def forward(self, tokens: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
            time.sleep(5e-5 * session.size * tokens.numel())
            return super().forward(tokens, lengths)

    def limit(step: int) -> int:
        return 1 if step == short else 1000

    events, _ = fit(
        dataset,
        session,
        lambda data: Even(make_model(data), limit, ERRORS["forward"], "forward"),
        2,
        rebalance_every=15,
        exchange="dense",
    )
    assert_same_losses(losses_of(events), undisturbed)


# A job of `engine.train` in which one rank has no memory for a row. Arguments: the rank, and those of the command.
NO_MEMORY = """
import os, sys
import torch
from engine.environment import prepare_environment
prepare_environment()
from engine.model import ReviewModel
from engine.train import main
forward = ReviewModel.forward
def short(self, tokens, lengths):
    if self.training and os.environ["OMPI_COMM_WORLD_RANK"] == sys.argv[1]:
        raise torch.OutOfMemoryError("CUDA out of memory")
    return forward(self, tokens, lengths)
ReviewModel.forward = short
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_without_memory_for_one_row_ends_the_job_with_a_message(session, dataset, tmp_path, rank):
    if session.size != 2:
        pytest.skip("a job of two ranks of its own, started once")
    options = ["--data", dataset, "--out", tmp_path / "run", "--batch-size", 64, "--threads", 1, "--device", "cpu"]
    status, _, told = run_job(session, 2, NO_MEMORY, rank, *options, "--epochs", 1, seconds=40)
    assert status is not None, "the job hangs"
    assert status != 0
    assert "step 1: out of memory with a micro-batch of one row" in told
