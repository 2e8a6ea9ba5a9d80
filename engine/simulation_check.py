"""Predicted against measured: the settings of benchmarks.balance, simulated from what it measured of each rank alone.

A rank's cost is its whole training step alone (no exchange) at several local batches, at the level of its rate during
the job. Two numbers are calibrated on even splits: the seconds of a step beyond the slowest rank's, on the quickest
even split of the same network, ranks and batch size (1:1 where it was measured: in uneven ones they drown in the slow
rank's own time), and the scatter of a rank's step, on each setting's own. Everything else is predicted.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from engine.errors import UsageError
from engine.plan import Plan
from engine.simulation import Scenario, simulate
from engine.simulation_ranks import Hardware, Network, TrueCosts
from native.format import BucketShape

METHODS = {"off": "even", "epoch": "epoch", "auto": "auto", "oracle": "oracle"}
"""the benchmark's names, and the simulation's"""
AIM = 0.1
BOUNDS = {"plain": (100,), "varying": (32, 64, 100)}
"""padded lengths by the kind of a setting; others are not simulated"""
STEPS, EPOCHS, WINDOW = 60, 3, 10
DRAWS = 2000


def check(path: Path) -> dict[str, Any]:
    """Compare all settings of a result file.

    Raises:
        UsageError: the file cannot be used.
    """
    try:
        settings = json.loads(path.read_text())["settings"]
        known = [one for one in settings if "off" in one.get("methods", {}) and one["kind"] in BOUNDS]
        found = [compare(setting, known) for setting in known]
    except OSError as error:
        raise UsageError(f"--check {path}: {error.strerror}; python -m benchmarks.balance --result writes it") from None
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise UsageError(f"--check {path}: not a result of benchmarks.balance ({error!r})") from None
    if not found:
        raise UsageError(f"--check {path}: no setting in it has an even split to start from")
    off = [
        abs(method["off"])
        for setting in found
        for name, method in setting["methods"].items()
        if name != "even" or setting["calibrated_on"] != setting["name"]
    ]
    return {
        "settings": found,
        "aim": AIM,
        "predictions": len(off),
        "within_aim": sum(one <= AIM for one in off),
        "worst": max(off, default=None),
    }


def compare(setting: Mapping[str, Any], settings: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One setting: seconds of 1,000 full batches, measured and predicted, by method.

    Args:
        setting: one of the settings.
        settings: all that have an even split.
    """
    batch_size, bounds = int(setting["batch_size"]), BOUNDS[setting["kind"]]
    quickest = min((one for one in settings if _group(one) == _group(setting)), key=_even_seconds)
    outside = max(0.0, _even_seconds(quickest) - _slowest(quickest))
    costs, noise = true_costs(setting, bounds), fitted_noise(setting)
    rows = batch_size * STEPS // len(bounds)
    plan = Plan(layout=[BucketShape(bound, rows, rows, 1) for bound in bounds], batch_size=batch_size, seed=1)
    scenario = Scenario(plan, Hardware(costs, Network(step_seconds=outside), noise), EPOCHS, WINDOW)
    methods = {}
    for name, mine in METHODS.items():
        if name not in setting["methods"]:
            continue
        measured = 1000 * batch_size / setting["methods"][name]["rows_per_second"]
        run = simulate(scenario, mine)
        # As in the benchmark, the first epoch is for settling.
        settled = sum(run.epoch_seconds[1:]) / (EPOCHS - 1) / plan.steps_per_epoch * 1000
        shares = [round(float(share), 1) for share in run.shares[-1][1]]
        methods[mine] = {"measured": measured, "predicted": settled, "off": settled / measured - 1, "shares": shares}
    return {
        "name": setting["name"],
        "noise": noise,
        "outside_seconds": outside,
        "calibrated_on": quickest["name"],
        "methods": methods,
    }


def _group(setting: Mapping[str, Any]) -> tuple[Any, ...]:
    """Settings whose steps have the same cost beyond compute."""
    return setting["network"], len(setting["rates"]), setting["batch_size"], setting["kind"]


def _even_seconds(setting: Mapping[str, Any]) -> float:
    """Measured seconds of a full batch, split evenly."""
    return float(setting["batch_size"] / setting["methods"]["off"]["rows_per_second"])


def _slowest(setting: Mapping[str, Any]) -> float:
    """Predicted seconds of the slowest rank in the even split."""
    noisy_DR = even_seconds(setting) * draws(fitted_noise(setting), len(setting["rates"]))
    return float(noisy_DR.max(axis=1).mean())


def even_seconds(setting: Mapping[str, Any]) -> np.ndarray:
    """Predicted seconds of every rank in the even split [R], the mean over the lengths."""
    ranks_R = np.arange(len(setting["rates"]))
    rows_R = np.array(setting["methods"]["off"]["shares"])
    costs = true_costs(setting, BOUNDS[setting["kind"]])
    seconds_R: np.ndarray = np.mean([cost.of(ranks_R, np.ones(len(ranks_R))).seconds(rows_R) for cost in costs], axis=0)
    return seconds_R


def true_costs(setting: Mapping[str, Any], bounds: Sequence[int]) -> list[TrueCosts]:
    """Costs of every rank from its rates alone at several local batches, at the level of its rate during the job."""
    tables = [{int(size): float(rate) for size, rate in table.items()} for table in setting["rates_at"]]
    sizes = sorted(set.intersection(*(set(table) for table in tables)))
    rows_RK = np.tile(np.array(sizes, dtype=float), (len(tables), 1))
    level_R = [
        table[best] / rate
        for table, best, rate in zip(tables, setting["best_local_batch"], setting["rates"], strict=True)
    ]
    seconds_RK = np.array([[size / table[size] for size in sizes] for table in tables]) * np.array(level_R)[:, None]
    # A rate is over equal numbers of rows of all lengths; time goes with the length.
    return [TrueCosts(rows_RK, np.maximum.accumulate(seconds_RK, axis=1) * bound / np.mean(bounds)) for bound in bounds]


def fitted_noise(setting: Mapping[str, Any]) -> float:
    """The scatter of a rank's step that spreads mean / max compute in the even split as far as was measured."""
    method, even_R = setting["methods"]["off"], even_seconds(setting)
    wanted = method["mean_over_max"] - method["mean_over_max_p10"]
    low, high = 0.0, 0.5
    for _ in range(30):
        middle = (low + high) / 2
        seconds_DR = even_R * draws(middle, len(even_R))
        ratio_D = seconds_DR.mean(axis=1) / seconds_DR.max(axis=1)
        low, high = (middle, high) if np.median(ratio_D) - np.quantile(ratio_D, 0.1) < wanted else (low, middle)
    return low


def draws(noise: float, ranks: int) -> np.ndarray:
    """Many steps' factors of noise [D, R], log-normal with mean 1, the same at every call."""
    normal_DR = np.random.Generator(np.random.Philox(1)).standard_normal((DRAWS, ranks))
    factors_DR: np.ndarray = np.exp(noise * normal_DR - noise**2 / 2)
    return factors_DR


def describe_check(figures: dict[str, Any]) -> str:
    """The comparison as a table for people."""
    lines = [
        "seconds of 1,000 full batches",
        f"{'':26}{'':8}{'measured':>10}{'predicted':>11}{'off':>8}   shares",
    ]
    for setting in figures["settings"]:
        for name, method in setting["methods"].items():
            shares = ":".join(f"{share:.0f}" for share in method["shares"])
            mark = shares + (", calibrated" if name == "even" and setting["calibrated_on"] == setting["name"] else "")
            lines.append(
                f"{setting['name']:26}{name:8}{method['measured']:10.1f}{method['predicted']:11.1f}"
                f"{method['off']:+8.1%}   {mark}"
            )
        lines.append(
            f"{'':26}{setting['outside_seconds'] * 1000:.1f} ms a step outside compute, by the even split of "
            f"{setting['calibrated_on']}; scatter {setting['noise']:.1%}"
        )
    worst = "" if figures["worst"] is None else f", the worst is {figures['worst']:.1%} off"
    lines.append(f"{figures['within_aim']} of {figures['predictions']} predictions within {AIM:.0%}{worst}")
    return "\n".join(lines)
