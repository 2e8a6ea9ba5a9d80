"""A run is repeated bit for bit with the shares that its metrics.jsonl tells of."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import BATCH, fit, losses_of, make_model, of_kind, only_several
from torch import nn

import engine
from engine.checkpoint import weights_digest
from engine.journal import read_journal

pytestmark = pytest.mark.mpi


class Slowed(nn.Module):
    """The reference model on a rank whose speed changes, so that shares do."""

    def __init__(self, data: engine.Dataset, slow: bool) -> None:
        super().__init__()
        self.inner, self._slow = make_model(data), slow
        self.progress: Any = None

    def forward(self, tokens: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        step = self.progress.total_steps if self.progress else 0
        time.sleep(tokens.numel() * (6e-5 if self._slow and 8 <= step < 30 else 1e-5))
        output: torch.Tensor = self.inner(tokens, lengths)
        return output


def write_events(session: engine.Session, tmp: Path, events: list[dict[str, Any]]) -> Path:
    path = Path(session.comm.bcast(str(tmp), root=0)) / "metrics.jsonl"
    if session.root:
        path.write_text("".join(json.dumps(event) + "\n" for event in events))
    session.comm.Barrier()
    return path


def test_a_balanced_run_is_repeated_bit_for_bit(session, dataset, tmp_path):
    only_several(session)
    events, first = fit(
        dataset,
        session,
        lambda data: Slowed(data, session.rank == 0),
        2,
        balance="auto",
        rebalance_every=15,
    )
    changes = [event for event in of_kind(events, "shares") if event["changed"] and event["step"] > 0]
    assert changes, "no shares have changed: there is nothing to repeat"
    path = write_events(session, tmp_path, events)
    with engine.open(dataset) as data:
        journal = read_journal(path, data.bounds, BATCH, session.size)
    again, second = fit(dataset, session, lambda data: Slowed(data, False), 2, journal=journal)
    assert losses_of(again) == losses_of(events)
    assert weights_digest(second.model) == weights_digest(first.model)
    # What the repetition tells is a journal of the same.
    path = write_events(session, tmp_path, again)
    with engine.open(dataset) as data:
        copy = read_journal(path, data.bounds, BATCH, session.size)
    steps = range(1, len(losses_of(events)) + 1)
    assert [copy.table(step) for step in steps] == [journal.table(step) for step in steps]
