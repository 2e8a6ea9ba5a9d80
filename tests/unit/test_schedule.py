"""The learning rate's course."""

from __future__ import annotations

import math

import pytest
import torch

from engine.schedule import LearningRate


def make(kind: str, warmup: int = 0) -> tuple[LearningRate, torch.optim.Optimizer]:
    first, second = (torch.nn.Parameter(torch.zeros(2)) for _ in range(2))
    optimizer = torch.optim.SGD([{"params": [first], "lr": 0.5}, {"params": [second], "lr": 2.0}])
    return LearningRate(optimizer, kind, warmup, epoch_steps=2), optimizer


def rates(optimizer: torch.optim.Optimizer) -> list[float]:
    return [group["lr"] for group in optimizer.param_groups]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("constant", [1, 1, 1, 1]),
        ("inverse", [1, 2 / 3, 1 / 2, 2 / 5]),
        ("linear", [1, 0.75, 0.5, 0.25]),
        ("cosine", [1, (1 + math.cos(math.pi / 4)) / 2, 0.5, (1 + math.cos(3 * math.pi / 4)) / 2]),
    ],
)
@pytest.mark.parametrize("warmup", [0, 4])
def test_rise_and_fall(kind, expected, warmup):
    rate, optimizer = make(kind, warmup)
    rise = [0.25, 0.5, 0.75, 1.0][:warmup]
    for step, factor in enumerate([*rise, *expected]):
        rate.set(step, warmup + 4)
        assert rates(optimizer) == pytest.approx([0.5 * factor, 2.0 * factor])


def test_a_run_that_goes_on_beyond_its_steps_ends_at_0_and_not_below():
    rate, _ = make("cosine")
    assert [rate.factor(step, 4) for step in (4, 5, 100)] == [0, 0, 0]
    assert make("inverse")[0].factor(100, 4) == make("inverse")[0].factor(100, 1000) == 2 / 102
    assert [make("linear")[0].factor(step, 4) for step in (4, 100)] == [0, 0]
    assert make("linear", 10)[0].factor(10, 10) == 1.0  # nothing is left to fall over


def test_a_constant_rate_is_left_to_the_user():
    rate, optimizer = make("constant")
    optimizer.param_groups[0]["lr"] = 0.125
    rate.set(1, 4)
    assert rates(optimizer) == [0.125, 2.0]


def test_reset_puts_this_runs_rates_back():
    rate, optimizer = make("linear")
    rate.set(2, 4)
    for group in optimizer.param_groups:
        group["lr"] = 9.0  # what a loaded checkpoint says
    rate.reset()
    assert rates(optimizer) == [0.5, 2.0]
    rate.set(2, 4)
    assert rates(optimizer) == [0.25, 1.0]


def test_an_unknown_schedule_is_refused():
    with pytest.raises(ValueError, match="schedule 'steep'"):
        make("steep")
