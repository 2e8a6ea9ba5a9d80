"""Balancing on real ranks: slow-downs, memory that runs out, micro-batches, and gradients by touched rows."""

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
from helpers import BATCH, OPTIMIZERS, SIZE, losses_of, make_model, make_plan, train, uneven
from torch import nn

import engine
from engine.balance import Decision
from engine.input import READ_AHEAD, ReviewSource
from engine.losses import ReviewLoss
from engine.progress import Progress
from engine.reduction import Reducer
from engine.shares import proportional_shares

pytestmark = pytest.mark.mpi
ROOT = Path(__file__).parents[2]
STEPS = 25
"""of an epoch"""


def fit(
    dataset: Path,
    session: engine.Session,
    make: Callable[[engine.Dataset], nn.Module],
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


# --- Slow ranks


class Sleeping(nn.Module):
    """Takes its time for tokens and for a start, next to nothing of its own: sharing a core does not slow it."""

    def __init__(self, seconds: Callable[[int, int], float]) -> None:
        super().__init__()
        self.scores = nn.Embedding(62, 1)
        self.seconds = seconds
        """of a token and of a start, by the steps done"""
        self.progress = Progress()

    def forward(self, tokens: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        per_token, start = self.seconds(self.progress.total_steps)
        time.sleep(start + per_token * tokens.numel())
        return self.scores(tokens).sum(dim=(1, 2))


@pytest.mark.parametrize("balance", ["auto", "epoch"])
def test_a_rank_that_slows_down_threefold_in_mid_run_gets_less(session, dataset, balance):
    only_several(session)
    slow, at = session.size - 1, 7

    def seconds(step: int) -> tuple[float, float]:
        return (1.5e-4 if step >= at and session.rank == slow else 5e-5) * session.size, 0.0

    events, _ = fit(dataset, session, lambda data: Sleeping(seconds), 2, balance=balance, rebalance_every=15)
    changes = [
        event
        for event in of_kind(events, "shares")
        if event["predicted_gain"] > 0.2 and event["step"] > at and not event["reason"].startswith("kept")
    ]
    assert changes
    first = changes[0]
    assert set(first) == {"event", "step", "bucket", "shares", "reason", "predicted_gain", "first_step"}
    assert first["reason"].startswith(f"rank {slow} was the slowest; its share goes from ")
    assert first["bucket"] in (None, 8, 16)
    assert sum(first["shares"]) == BATCH
    # Within a window, which is five looks of three steps.
    assert first["step"] == STEPS if balance == "epoch" else at < first["step"] <= at + 15
    assert first["first_step"] == first["step"] + READ_AHEAD + (1 if balance == "epoch" else 2)
    assert first["shares"][slow] < min(first["shares"][:slow]) / 1.8
    (last,) = [event for event in of_kind(events, "epoch") if event["epoch"] == 2]
    assert last["shares"][slow] < min(last["shares"][:slow]) / 2
    assert last["starved_ranks"] == []
    # What became of it is told, of the last change at least.
    gains = of_kind(events, "gain")
    assert gains
    assert {event["decided_at"] for event in gains} <= {event["step"] for event in of_kind(events, "shares")}
    assert all(gain["decided_at"] < gain["step"] for gain in gains)
    told = [gain for gain in gains if gain["decided_at"] == first["step"]]
    for gain in told:
        assert gain["predicted_gain"] == first["predicted_gain"]
        assert gain["achieved_gain"] < 1


def test_a_rank_without_rows_comes_back_when_it_has_become_fast(session, dataset):
    only_several(session)
    slow = session.size - 1

    def seconds(step: int) -> tuple[float, float]:
        return 5e-5, 0.3 if session.rank == slow and step < 10 else 0.001

    events, _ = fit(dataset, session, lambda data: Sleeping(seconds), 4, balance="epoch")
    shares = [event["shares"][slow] for event in of_kind(events, "epoch")]
    assert shares[0] <= 1  # by the start-up profile: none, unless something else was slow then
    assert max(shares[1:]) > BATCH / session.size / 2


def test_a_rank_that_waits_for_its_input_is_named_and_keeps_its_share(session, dataset):
    only_several(session)
    hungry = session.size - 1

    def starved(source: ReviewSource) -> Any:
        def read(bucket: int, rows: np.ndarray) -> Any:
            time.sleep(0.12 if session.rank == hungry else 0.0)
            return source(bucket, rows)

        return read

    events, _ = fit(
        dataset,
        session,
        lambda data: Sleeping(lambda step: (2e-5 * session.size, 0.0)),
        2,
        source=starved,
        batch_size=2 * BATCH,
        rebalance_every=15,
    )
    for epoch in of_kind(events, "epoch"):
        assert epoch["starved_ranks"] == [hungry]
        assert epoch["shares"][hungry] == pytest.approx(2 * BATCH / session.size, rel=0.15)


def test_an_epoch_whose_last_look_ends_with_it_changes_shares_too(session, dataset, monkeypatch):
    """A look is taken while three steps are left, one of which is the last of the run."""
    only_several(session)
    for batch_size in (50, 48, 52):
        with engine.open(dataset) as data:
            steps = make_plan(data, batch_size).steps_per_epoch
        decided = []

        def scripted(balancer, step, window, most_threshold=1.0, batch_size=batch_size, decided=decided):
            decided.append(step)
            weights = np.roll(np.arange(session.size) + 1, len(decided)).tolist()
            balancer.table = (proportional_shares(weights, batch_size),) * len(balancer.bounds)
            return Decision(balancer.table, True, "scripted", 0.5)

        monkeypatch.setattr("engine.balance.Balancer.decide", scripted)
        for every in (3, 4, 5, 6, 7):
            looks = [step for step in range(1, steps) if step % every == 0 and steps - step in (5, 6)]
            if looks or every == 3:
                events, _ = fit(
                    dataset, session, make_model, 1, batch_size=batch_size, rebalance_every=every, optimizer="sgd"
                )
                assert len(of_kind(events, "step")) == steps


def test_ranks_with_different_options_of_balancing_are_told(session, dataset):
    only_several(session)
    odd = session.rank == session.size - 1
    for name, options in (
        ("--micro-batch", {"micro_batch": 7 if odd else 0}),
        ("--exchange", {"exchange": "rows" if odd else "dense"}),
        ("--compression", {"compression": "fp16" if odd else "none"}),
        ("--rebalance-every", {"rebalance_every": 20 if odd else 50}),
    ):
        with pytest.raises(engine.UsageError, match=f"disagree on {name}: rank 0"):
            fit(dataset, session, make_model, 1, **options)


# --- Memory


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


@pytest.fixture(scope="module")
def undisturbed(session, dataset):
    """Losses of the reference in two epochs, with Adam."""
    return train(dataset, session, "adam", 2, balance="off", exchange="dense")[0]


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


def run_without_memory(rank: int, folder: Path, out: Path) -> subprocess.CompletedProcess[str]:
    # A launch of its own, not as a part of this one.
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("OMPI_", "PMIX_", "HOROVOD_"))}
    allowed = {name: value for name, value in os.environ.items() if name.startswith("OMPI_ALLOW_RUN_AS_ROOT")}
    mpirun = Path(sys.executable).parent / "mpirun"
    command = [str(mpirun) if mpirun.exists() else "mpirun", "--oversubscribe", "--bind-to", "none", "-n", "2"]
    options = ["--data", folder, "--out", out, "--batch-size", 64, "--threads", 1, "--device", "cpu", "--epochs", 1]
    return subprocess.run(
        [*command, sys.executable, "-c", NO_MEMORY, str(rank), *map(str, options)],
        env=clean | allowed,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=40,
        check=False,
    )


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_without_memory_for_one_row_ends_the_job_with_a_message(session, dataset, tmp_path, rank):
    if session.size != 2:
        pytest.skip("a job of two ranks of its own, started once")
    status, told = 0, "the job hangs"
    if session.root:
        try:
            job = run_without_memory(rank, dataset, tmp_path / "run")
            status, told = job.returncode, job.stderr
        except subprocess.TimeoutExpired:
            pass
    # The others sleep meanwhile: the job needs the cores.
    request = session.comm.Ibarrier()
    while not request.Test():
        time.sleep(0.01)
    status, told = session.comm.bcast((status, told), root=0)
    assert status != 0
    assert "step 1: out of memory with a micro-batch of one row" in told


# --- Micro-batches, and gradients by touched rows


@pytest.mark.parametrize("balance", ["off", "auto"])
@pytest.mark.parametrize("exchange", ["dense", "rows"])
def test_micro_batches_change_nothing_in_the_trajectory(session, dataset, undisturbed, balance, exchange):
    events, trainer = fit(dataset, session, make_model, 2, micro_batch=7, balance=balance, exchange=exchange)
    assert_same_losses(losses_of(events), undisturbed)
    assert trainer._work.micro_batch == 7


class Twin(nn.Module):
    """Two embeddings of one size, the sums of which are scores."""

    def __init__(self, ids: int) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.one, self.other = nn.Embedding(ids, 3, padding_idx=0), nn.Embedding(ids, 3)
        self.head = nn.Linear(3, 1)

    def forward(self, tokens: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        # The second one looks up only few rows.
        mixed = self.one(tokens).mean(dim=1) * (1 + self.other(lengths.long() % 5))
        return self.head(torch.tanh(mixed)).squeeze(1)


class Tied(Twin):
    """The first embedding's weight is also what the scores are made with."""

    def __init__(self, ids: int) -> None:
        super().__init__(ids)
        self.out = nn.Linear(3, ids, bias=False)
        self.out.weight = self.one.weight

    def forward(self, tokens: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        return super().forward(tokens, lengths) + self.out(self.other(lengths.long() % 5)).mean(dim=1)


MODELS = {
    "one": make_model,
    "two": lambda data: Twin(data.ids),
    "tied": lambda data: Tied(data.ids),
}


@pytest.mark.parametrize(
    ("kind", "optimizer", "options"),
    [
        ("one", "sgd", {}),
        ("one", "adam", {"weights": (3.0, 0.25), "clip_norm": 0.05}),
        ("two", "adam", {}),
        ("two", "sgd", {"weights": (3.0, 0.25), "clip_norm": 0.05}),
        ("tied", "adam", {}),
    ],
    ids=["one-sgd", "one-adam-weights-clip", "two-adam", "two-sgd-weights-clip", "tied-adam"],
)
def test_gradients_by_touched_rows_give_the_very_same_trajectory(session, dataset, kind, optimizer, options):
    only_several(session)
    weights, clip_norm = options.get("weights"), options.get("clip_norm", 0.0)

    def losses(exchange: str, proportions: tuple[float, ...]) -> list[float]:
        events, trainer = fit(
            dataset,
            session,
            MODELS[kind],
            2,
            optimizer=optimizer,
            loss=ReviewLoss(SIZE, weights),
            clip_norm=clip_norm,
            balance="off",
            shares=proportions,
            exchange=exchange,
        )
        rows = exchange == "rows"
        assert trainer._exchange.method == ("rows" if rows else "dense")
        assert trainer._exchange.overlaps == rows
        # A tied weight is exchanged whole.
        assert len(trainer._exchange._rows) == ({"one": 1, "two": 2, "tied": 1}[kind] if rows else 0)
        assert not proportions or 0 in trainer.shares
        return losses_of(events)

    expected = losses("dense", ())
    for proportions in ((), uneven(session.size)):
        assert_same_losses(losses("rows", proportions), expected)


def test_no_two_tensors_of_a_step_travel_under_one_name(session, dataset, monkeypatch):
    """Mostly the first is there before the second is sent; on a slow network it is not."""
    only_several(session)
    send, wait = session.hvd.allreduce_async_, Reducer.wait
    travelling: list[str] = []
    steps: list[list[str]] = []

    def noting(tensor: torch.Tensor, *, op: Any, name: str) -> Any:
        travelling.append(name)
        return send(tensor, op=op, name=name)

    def waiting(reducer: Reducer) -> None:
        wait(reducer)
        steps.append(travelling.copy())
        travelling.clear()

    monkeypatch.setattr(session.hvd, "allreduce_async_", noting)
    monkeypatch.setattr(Reducer, "wait", waiting)
    # All rows on one rank: enough for two phases.
    fit(dataset, session, make_model, 1, balance="off", shares=[1.0] + [0.0] * (session.size - 1), exchange="rows")
    assert len(steps) >= STEPS
    assert all(len(set(names)) == len(names) for names in steps)


def test_shares_that_change_in_every_bucket_change_nothing_by_touched_rows(session, dataset, undisturbed, monkeypatch):
    only_several(session)
    used = []

    def scripted(balancer, step, window, most_threshold=1.0):
        weights = np.roll(np.arange(session.size) ** 2, len(used)).tolist()
        used.append(weights)
        balancer.table = (proportional_shares(weights, BATCH), proportional_shares(weights[::-1], BATCH))
        return Decision(balancer.table, True, "scripted", 0.5)

    monkeypatch.setattr("engine.balance.Balancer.decide", scripted)
    events, _ = fit(dataset, session, make_model, 2, rebalance_every=3, exchange="rows")
    assert_same_losses(losses_of(events), undisturbed)
    assert session.comm.bcast(len(used), root=0) > 12
    assert {event["bucket"] for event in of_kind(events, "shares")} == {8, 16}


def test_an_embedding_that_is_used_besides_its_module_is_told_on_all_ranks(session, dataset):
    only_several(session)

    class Odd(Twin):
        def forward(self, tokens: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
            used = super().forward(tokens, lengths)
            return used + nn.functional.linear(self.one(tokens[:, 0]), self.one.weight).sum(dim=1)

    with pytest.raises(engine.TrainingError, match=r"did not look up .* set --exchange dense"):
        fit(dataset, session, lambda data: Odd(data.ids), 1, balance="off", exchange="rows")
    dense = fit(dataset, session, lambda data: Odd(data.ids), 1, balance="off", exchange="dense")[0]
    assert len(of_kind(dense, "step")) == STEPS


def test_an_embedding_that_is_called_by_keyword_is_exchanged_by_rows(session, dataset):
    only_several(session)

    class Named(Twin):
        def forward(self, tokens: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
            return self.head(torch.tanh(self.one(input=tokens).mean(dim=1))).squeeze(1)

    dense, rows = (
        fit(dataset, session, lambda data: Named(data.ids), 1, balance="off", exchange=exchange)[0]
        for exchange in ("dense", "rows")
    )
    assert_same_losses(losses_of(rows), losses_of(dense))


@pytest.mark.parametrize("exchange", ["dense", "rows"])
def test_gradients_in_16_bits_train_closely(session, dataset, exchange):
    """Only float32 is rounded: in float64 nothing changes."""
    only_several(session)
    options = {"dtype": torch.float32, "balance": "off", "shares": uneven(session.size)}
    expected, _ = train(dataset, session, "sgd", 2, **options)
    found, _ = train(dataset, session, "sgd", 2, compression="fp16", exchange=exchange, **options)
    assert_same_losses(found, expected, 1e-2)
    assert found != expected
