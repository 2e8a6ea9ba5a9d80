"""What a rank's timings say."""

from __future__ import annotations

import pytest

from engine.timing import RankClock


def test_samples_are_summed_up_per_shape_and_hiccups_left_out():
    clock = RankClock()
    for number in range(42):
        clock.add(bound=8, rows=10, compute=9.0 if number in (0, 20) else 1.0, input=0.5, wait=0.25)
    clock.add(bound=16, rows=5, compute=1.0, input=0.0, wait=0.0)
    clock.add(bound=16, rows=0, compute=1.0, input=0.0, wait=0.0)
    (timing,) = clock.take_timings(epoch_ends=False)
    # the first step of a length only warms up, and of the other 41 the two longest are left out
    assert (timing.bound, timing.rows, timing.steps, timing.seconds, timing.spread) == (8, 10, 39, 1.0, 0.0)
    assert clock.totals() == (60.0, 21.0, 10.5)


def test_a_look_sees_the_last_window_and_an_epochs_end_all_since_the_last_change():
    clock = RankClock()

    def window(seconds: float) -> None:
        for _ in range(10):
            clock.add(8, 10, seconds, 0.0, 0.0)

    window(1.0)
    assert clock.take_timings(epoch_ends=False)[0].seconds == 1.0
    window(2.0)
    assert clock.take_timings(epoch_ends=False)[0].seconds == 2.0
    (timing,) = clock.take_timings(epoch_ends=True)
    assert timing.steps == 19
    assert timing.seconds == pytest.approx(29 / 19)
    assert clock.take_timings(epoch_ends=True) == []
    window(1.0)
    clock.take_timings(epoch_ends=False)
    clock.forget()
    window(3.0)
    assert clock.take_timings(epoch_ends=True)[0].seconds == 3.0
