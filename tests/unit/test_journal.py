"""The shares of an earlier run, read from its metrics.jsonl."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from engine.errors import UsageError
from engine.journal import Journal, read_journal
from engine.progress import shares_event

WORK = {"event": "work", "step": 0, "micro_steps": [64, 0], "exchange": "dense"}


def write(path: Path, *events: dict[str, Any], torn: str = "") -> Path:
    path.write_text("".join(json.dumps(event) + "\n" for event in events) + torn)
    return path


def read(path: Path) -> Journal:
    return read_journal(path, [16, 32], 10, 2)


def both(*shares: int) -> tuple[tuple[int, ...], ...]:
    return (shares, shares)


def test_shares_hold_from_their_first_step_on_and_bucket_by_bucket(tmp_path):
    journal = read(
        write(
            tmp_path / "m",
            shares_event(0, (5, 5), "start", 0.0),
            WORK,
            shares_event(3, (6, 4), "slow", 0.1, 16, 7),
            shares_event(3, (7, 3), "slow", 0.1, 32, 7),
            {"event": "step", "step": 8, "loss": 1.0},
            shares_event(9, (9, 1), "kept: a change would gain little", 0.0, changed=False),
            shares_event(9, (8, 2), "slow", 0.1, 16, 12),
            torn='{"event": "shares"',
        )
    )
    assert [journal.table(step) for step in (1, 6)] == [both(5, 5)] * 2
    assert journal.table(7) == journal.table(11) == ((6, 4), (7, 3))
    assert journal.table(12) == journal.table(10**9) == ((8, 2), (7, 3))
    assert (journal.micro_steps, journal.exchange) == ((64, 0), "dense")
    assert journal.schedule(0) == [journal.table(step) for step in range(1, 13)]
    assert journal.schedule(500) == [((8, 2), (7, 3))]


def test_a_change_that_a_resumed_run_never_made_is_not_made(tmp_path):
    """It was announced for step 12; the run was killed, and went on from step 9 with what was in force there."""
    journal = read(
        write(
            tmp_path / "m",
            shares_event(0, (5, 5), "start", 0.0),
            WORK,
            shares_event(8, (9, 1), "slow", 0.1, None, 12),
            shares_event(9, (5, 5), "resumed", 0.0, None, 10),
        )
    )
    assert journal.table(13) == both(5, 5)


@pytest.mark.parametrize(
    ("events", "message"),
    [
        ([], "tells of no shares"),
        ([shares_event(0, (5, 5), "start", 0.0)], "tells of no shares"),
        ([WORK, shares_event(0, (5, 5, 0), "start", 0.0)], "line 2: shares of 3 ranks, this run has 2"),
        ([shares_event(0, (5, 6), "start", 0.0)], "line 1: .* do not make this run's batch of 10 rows"),
        ([shares_event(0, (11, -1), "start", 0.0)], "do not make"),
        ([shares_event(0, (5, 5), "start", 0.0, 64)], r"a length 64, this dataset has the lengths \[16, 32\]"),
        ([{"event": "shares", "changed": True}], "line 1: 'shares'"),
        ([{"event": "work", "micro_steps": 3}], "line 1"),
        ([WORK, {**WORK, "micro_steps": [32, 0]}], "line 2: the run cut its rows .* otherwise from here on"),
        ([WORK, {**WORK, "exchange": "rows"}], "line 2: the run cut its rows or sent its gradients otherwise"),
    ],
)
def test_what_cannot_be_followed_is_told(tmp_path, events, message):
    with pytest.raises(UsageError, match=message) as error:
        read(write(tmp_path / "m", *events))
    assert str(error.value).startswith(f"--shares-from {tmp_path / 'm'}")


@pytest.mark.parametrize("content", [b"\xff\n", b"no json\n", b"[" * 100_000 + b"\n", None])
def test_what_is_no_journal_is_told(tmp_path, content):
    if content is not None:
        (tmp_path / "m").write_bytes(content)
    with pytest.raises(UsageError, match="not readable"):
        read(tmp_path / "m")
