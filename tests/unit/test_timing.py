"""What a rank's timings say."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch

from engine.timing import LOOK_FIELDS, ComputeTimer, RankClock


def add(clock: RankClock, bound: int, rows: int, *seconds: float) -> None:
    for compute in seconds:
        clock.add(bound, rows, compute, 0.0, 0.0)


def warm(*shapes: tuple[int, int]) -> RankClock:
    """A clock that has seen these shapes (bound, rows) once."""
    clock = RankClock([8, 16, 32])
    for bound, rows in shapes:
        add(clock, bound, rows, 99.0)
    return clock


def test_a_look_has_steps_rows_mean_and_squares_per_bucket_and_begins_anew():
    clock = warm((8, 10), (32, 5))
    add(clock, 8, 10, 1.0, 2.0, 3.0)
    add(clock, 32, 5, 4.0)
    found = clock.look()
    assert found.shape == (3, LOOK_FIELDS)
    assert found.dtype == np.float64
    assert found.tolist() == [[3, 10, 2.0, 2.0], [0, 0, 0, 0], [1, 5, 4.0, 0.0]]
    assert not clock.look().any()
    add(clock, 8, 10, 7.0)
    assert clock.look()[0].tolist() == [1, 10, 7.0, 0.0]


def test_the_first_batch_of_a_shape_only_warms_up():
    clock = RankClock([8])
    add(clock, 8, 10, 50.0)
    assert not clock.look().any()
    add(clock, 8, 10, 1.0)
    add(clock, 8, 11, 50.0)
    assert clock.look()[0].tolist() == [1, 10, 1.0, 0.0]


def test_the_most_frequent_size_of_a_bucket_counts_and_the_larger_one_of_two():
    clock = warm((8, 3), (8, 10), (8, 12))
    add(clock, 8, 3, 0.5)
    add(clock, 8, 10, 1.0, 1.0)
    assert clock.look()[0].tolist() == [2, 10, 1.0, 0.0]
    add(clock, 8, 12, 2.0, 2.0)
    add(clock, 8, 10, 1.0, 1.0)
    assert clock.look()[0].tolist() == [2, 12, 2.0, 0.0]


def test_the_longest_step_in_twenty_is_left_out_and_a_stall_of_every_tenth_is_not():
    clock = warm((8, 10))
    add(clock, 8, 10, *[1.0] * 40, 30.0, 40.0)
    assert clock.look()[0].tolist() == [40, 10, 1.0, 0.0]
    add(clock, 8, 10, *[1.0] * 18, 30.0)
    steps, _, mean, squares = clock.look()[0]
    assert steps == 19
    assert mean == pytest.approx(48 / 19)
    assert squares == pytest.approx(np.var([1.0] * 18 + [30.0]) * 19)
    add(clock, 8, 10, *([1.0] * 9 + [5.0]) * 4)
    steps, _, mean, _ = clock.look()[0]
    assert steps == 38
    assert mean == pytest.approx((36 + 2 * 5) / 38)


def test_steps_without_rows_are_no_sample_but_count_in_the_totals():
    clock = warm()
    clock.add(8, 0, compute=0.5, input=0.25, wait=2.0)
    clock.add(8, 0, compute=0.5, input=0.25, wait=2.0)
    assert not clock.look().any()
    assert clock.totals() == (1.0, 0.5, 4.0)


def test_forgetting_drops_the_samples_and_keeps_totals_and_warmth():
    clock = warm((8, 10))
    add(clock, 8, 10, 1.0, 1.0)
    clock.forget()
    assert not clock.look().any()
    add(clock, 8, 10, 3.0)
    assert clock.look()[0].tolist() == [1, 10, 3.0, 0.0]
    assert clock.totals() == (104.0, 0.0, 0.0)


def test_an_epochs_totals_begin_at_0_or_where_a_checkpoint_left_them():
    clock = warm((8, 10))
    clock.start_epoch((5.0, 6.0, 7.0))
    clock.add(8, 10, 1.0, 2.0, 3.0)
    assert clock.totals() == (6.0, 8.0, 10.0)
    clock.start_epoch()
    assert clock.totals() == (0.0, 0.0, 0.0)
    assert clock.look()[0, 0] == 1  # samples are of a look, not of an epoch


@pytest.fixture
def clock(monkeypatch):
    """Time that stands still until it is told."""
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    return now


def test_the_timer_stands_still_while_another_rank_is_waited_for(clock):
    timer = ComputeTimer(torch.device("cpu"))
    timer.start()
    clock[0] += 1
    timer.pause()
    clock[0] += 50
    timer.resume()
    clock[0] += 2
    timer.stop()
    clock[0] += 50
    assert timer.seconds() == 3
    timer.start()
    clock[0] += 4
    timer.stop()
    assert timer.seconds() == 4
