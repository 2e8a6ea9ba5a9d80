"""The lines that rank 0 says of a run's events."""

from __future__ import annotations

from typing import Any

from engine.progress import shares_event
from engine.told import Teller


def epoch(compute: list[float]) -> dict[str, Any]:
    return {
        "event": "epoch", "step": 10, "epoch": 1, "train_loss": 0.5, "validation": None, "seconds": 20.0, "rows": 100,
        "rows_per_second": 5.0, "compute_seconds": compute, "input_seconds": [0.1] * len(compute), "starved_ranks": [],
    }  # fmt: skip


def test_a_change_is_told_once_for_all_lengths_with_what_it_promises():
    teller, lines = Teller(2), []
    for bucket in (8, 16, 32):
        lines += teller.lines(shares_event(30, (100, 156), "rank 1 was slow", 0.0524, bucket, 34))
    assert lines == ["step 30: new shares for each length (rank 1 was slow), 5.2% expected"]
    assert len(teller.lines(shares_event(60, (90, 166), "rank 1 was slow", 0.03, 8, 64))) == 1
    assert teller.lines(shares_event(0, (128, 128), "start", 0.0)) == ["step 0: shares [128, 128] (start)"]
    assert not teller.lines(shares_event(90, (90, 166), "kept: 1% may be noise", 0.01, changed=False))
    assert not Teller(1).lines(shares_event(0, (256,), "start", 0.0))


def test_ranks_that_are_late_in_turn_do_not_look_balanced():
    """Each rank computes 9 s in all, but one of them is late in each step: the longest ones come to 12 s.

    The epoch was resumed inside: its own sums are of more steps than the timeline, which alone is gone by.
    """
    teller = Teller(2)
    seconds = [[4.0, 5.0], [6.0, 3.0]]
    assert not teller.lines({"event": "timeline", "longest_compute_seconds": 12.0, "compute_seconds": seconds})
    [line] = teller.lines(epoch([20.0, 20.0]))
    assert line.endswith("20.0 s, 5 rows/s, mean/max compute 0.75")
    assert "mean/max" not in Teller(1).lines(epoch([9.0]))[0]
