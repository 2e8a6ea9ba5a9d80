"""The time line of all ranks: whole, nested, on one clock, and nothing left of it afterwards."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import OPTIMIZERS, SIZE, losses_of, make_model, make_plan, only_several

import engine
from engine.losses import ReviewLoss
from engine.trace import Trace
from engine.trace_clock import Clock, alignments, measure_offsets
from tests.traces import assert_sound, ends_of, slices_by_rank

pytestmark = pytest.mark.mpi

DRIFT = 2e-4
APART = 5_000_000_000
"""nanoseconds between the clocks of two ranks"""


def clock_of(session: engine.Session) -> Clock:
    """Hosts' clocks, as unlike as they come: seconds apart, and every one with a drift of its own."""
    rate, ahead = 1 + DRIFT * session.rank, APART * session.rank
    began = session.comm.bcast(time.monotonic_ns(), root=0)
    return Clock(lambda: int((time.monotonic_ns() - began) * rate) + began + ahead, f"clock {session.rank}")


@pytest.fixture
def out(session: engine.Session) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as own:
        yield Path(session.comm.bcast(own, root=0))
        session.comm.Barrier()


def train(
    dataset: Path, session: engine.Session, trace: Trace | None, *, epochs: int = 1, **options: Any
) -> tuple[list[float], engine.Trainer]:
    events: list[dict[str, Any]] = []

    def record(event: dict[str, Any]) -> None:
        events.append(event)
        if trace is not None:
            trace.event(event)

    with engine.open(dataset) as data:
        model = make_model(data)
        trainer = engine.Trainer(
            model, ReviewLoss(SIZE), OPTIMIZERS["adam"](model.parameters()), make_plan(data), session,
            precision="float64", log_every=1, hooks=engine.Hooks(record=record, trace=trace), **options,
        )  # fmt: skip
        trainer.fit(data, epochs)
    if trace is not None:
        trace.finish()
    return session.comm.bcast(losses_of(events), root=0), trainer


def read(session: engine.Session, path: Path) -> dict[str, Any]:
    known: dict[str, Any] = session.comm.bcast(json.loads(path.read_text()) if session.root else None, root=0)
    return known


def test_clocks_are_compared_to_within_what_is_told(session):
    only_several(session)
    clock = clock_of(session)
    before = measure_offsets(session.comm, clock)
    time.sleep(0.3)
    after = measure_offsets(session.comm, clock)
    mine = alignments(before, after)[session.rank]
    for _ in range(50):
        truth = time.monotonic_ns()
        # Rank 0's clock is the host's; so is the truth, a moment before the reading.
        found = mine(clock.now())
        late = time.monotonic_ns() - truth
        assert truth - mine.uncertainty - 1e3 <= found <= truth + late + mine.uncertainty + 1e3
        time.sleep(0.001)
    assert (mine.uncertainty > 0) == (session.rank > 0)


def test_ranks_of_one_kernel_share_its_clock(session):
    offsets = measure_offsets(session.comm, Clock.of_this_host(session.rank))
    assert all(offset.ahead == offset.uncertainty == 0 for offset in offsets)


@pytest.mark.parametrize("exchange", ["dense", "rows"])
def test_the_trace_is_sound_and_on_one_clock(session, dataset, out, exchange):
    said: list[str] = []
    trace = Trace(session, out, (4, 9), say=said.append, clock=clock_of(session))
    train(dataset, session, trace, balance="off", exchange=exchange, micro_batch=9)
    found = read(session, out / "trace-4-9.json")
    assert_sound(found, session.size, range(4, 10))
    assert [str(out / "trace-4-9.json") in line for line in said] == ([True] if session.root else [])
    about = found["otherData"]
    assert about["steps"] == [4, 9]
    assert len(about["clock_uncertainty_us"]) == session.size
    # Nobody has the sum before the last rank has given its part, by whatever clock it was timed.
    error = 2 * max(about["clock_uncertainty_us"]) + 1
    for exchanges in ends_of(found, "exchange").values():
        last = max(start for start, _ in exchanges.values())
        assert all(end >= last - error for _, end in exchanges.values())
    micro = [event for event in slices_by_rank(found)[session.rank] if event["cat"] == "micro-batch"]
    assert max(event["args"]["rows"] for event in micro) <= 9
    kinds = {event["cat"] for event in slices_by_rank(found)[0]}
    assert kinds >= {"forward", "backward", "post"}
    assert ("early exchange" in kinds) == (exchange == "rows" and session.size > 1)


def test_tracing_changes_nothing_and_leaves_nothing_behind(session, dataset, out):
    plain, _ = train(dataset, session, None, balance="off")
    traced, trainer = train(dataset, session, Trace(session, out, (2, 5)), balance="off")
    assert traced == plain
    for owner in (trainer, trainer._work, trainer._exchange, trainer._exchange._reducer):
        assert not any(callable(value) and getattr(value, "__name__", "") == "timed" for value in vars(owner).values())
    assert trainer.hooks.trace is None
    assert "forward" not in vars(trainer._work)


def test_an_epochs_end_and_its_decision_are_in_it(session, dataset, out):
    """The steps that were asked for reach beyond the end of training."""
    _, trainer = train(dataset, session, Trace(session, out, (24, 99)), epochs=2, balance="epoch")
    steps = trainer.progress.total_steps
    found = read(session, out / f"trace-24-{steps}.json")
    assert_sound(found, session.size, range(24, steps + 1))
    kinds = {event["cat"] for event in slices_by_rank(found)[session.size - 1]}
    assert kinds >= {"end of epoch", "validate", "save"}
    marks = [event for event in found["traceEvents"] if event["ph"] == "i"]
    assert {mark["name"] for mark in marks} <= {"shares changed", "shares kept", "gain told"}
    ends = [event for event in slices_by_rank(found)[0] if event["cat"] == "end of epoch"]
    assert any(ends[0]["ts"] <= mark["ts"] <= ends[0]["ts"] + ends[0]["dur"] for mark in marks)
    assert marks[0]["args"]["event"] == "shares"


def test_steps_that_never_come_are_told(session, dataset, out):
    said: list[str] = []
    train(dataset, session, Trace(session, out, (500, 510), say=said.append), balance="off")
    warning = "warning: no step of --trace-steps 500:510 was made, so there is no trace"
    assert said == ([warning] if session.root else [])
    assert not list(out.iterdir())


def test_a_full_disk_loses_the_trace_and_not_the_run(session, dataset, out):
    said: list[str] = []
    trace = Trace(session, out / "missing", (2, 3), say=said.append)
    _, trainer = train(dataset, session, trace, balance="off")
    assert trainer.progress.epoch == 1
    if session.root:
        assert any("the trace is lost; training goes on" in line for line in said)
    assert torch.isfinite(next(trainer.model.parameters())).all()
