"""Predicted against measured: every run of the reference training that the machines' files tell of.

The original's balanced runs are a test of their own: its balancer took a GPU 1.78 times as slow for 1.14 times as slow
(engine.simulation_original), and shared by that from the second of 10 epochs on. The 1.14 is fitted to its run on two
GPUs. What this engine's exact shares would reach stands beside it, and was measured by nobody.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from engine.cost_machines import Catalogue, Measured, reference_training
from engine.cost_mixes import Machine, Outcome, Training, cluster, predict
from engine.errors import UsageError
from engine.shares import even_shares, proportional_shares
from engine.simulation_original import EPOCHS, calibrate

SLOW = "p2.xlarge"
"""the machine that the original's timer took for less slow than it was"""


def check(catalogue: Catalogue) -> dict[str, Any]:
    """Compare all measured runs.

    Raises:
        UsageError: the files tell of none.
    """
    reference = catalogue.reference
    if reference is None or not reference.measured:
        raise UsageError("--check: the files of machines tell of no measured run; write one as [[reference.measured]]")
    training, machines = reference_training(catalogue)
    runs = [_compare(run, machines, training, reference.ours) for run in reference.measured]
    off = [abs(one["even"]["off"]) for one in runs if not one["calibrates"]]
    return {
        "reference": reference.name,
        "alone": {name: one.seconds for name, one in catalogue.machines.items() if one.seconds is not None},
        "exchange_seconds": training.network.gradient_bytes,
        "runs": runs,
        "predictions": len(off),
        "mean_off": sum(off) / len(off) if off else None,
        "worst_off": max(off, default=None),
    }


def _compare(run: Measured, machines: Mapping[str, Machine], training: Training, ours: bool) -> dict[str, Any]:
    outcome = predict(run.mix, machines, training)
    gain = outcome.even.seconds - outcome.balanced.seconds
    found: dict[str, Any] = {
        "mix": dict(run.mix),
        "name": outcome.name,
        "calibrates": run.calibrates,
        "even": {"measured": run.even, "predicted": outcome.even.seconds, "off": outcome.even.seconds / run.even - 1},
        "exact_shares": {
            "predicted": outcome.balanced.seconds,
            "saved": outcome.saved,
            # Shares mend nothing of what the prediction missed.
            "of_measured_seconds": run.even - gain,
            "saved_of_measured": gain / run.even,
        },
    }
    if run.balanced is not None:
        found["balanced"] = {"measured": run.balanced, "saved": 1 - run.balanced / run.even}
        if ours:
            seconds = _as_the_original_balanced(run, machines, training, outcome)
            found["balanced"] |= {"predicted": seconds, "off": seconds / run.balanced - 1}
    return found


def _as_the_original_balanced(
    run: Measured, machines: Mapping[str, Machine], training: Training, outcome: Outcome
) -> float:
    """Seconds with the shares that the original's balancer chose: even in the first epoch, by what it saw after it."""
    chosen = cluster(run.mix, machines)
    batch_size = training.batch_size * len(chosen)
    weights = [1 / calibrate().seen_ratio if machine.name == SLOW else 1.0 for machine in chosen]
    rates_R = np.array([machine.rate / machine.gpus for machine in chosen])
    first, later = (
        training.work * float((np.array(shares) / batch_size / rates_R).max())
        for shares in (even_shares(len(chosen), batch_size), proportional_shares(weights, batch_size))
    )
    return first / EPOCHS + later * (1 - 1 / EPOCHS) + outcome.exchange_seconds


def describe_check(figures: dict[str, Any]) -> str:
    """The table for people."""
    width = max(len(run["name"]) for run in figures["runs"]) + 15
    lines = [
        f"seconds of {figures['reference']}; one machine alone (given): "
        + ", ".join(f"{name} {seconds:,.0f}" for name, seconds in figures["alone"].items()),
        f"{'':{width}}{'measured':>10}{'predicted':>11}{'off':>8}{'saved':>8}",
    ]
    for run in figures["runs"]:
        even, exact = run["even"], run["exact_shares"]
        kind = "calibrated" if run["calibrates"] else "predicted"
        label = f"{run['name']}, even"
        lines.append(
            f"{label:{width}}{even['measured']:10,.0f}{even['predicted']:11,.0f}{_percent(even['off']):>8}{'':11}{kind}"
        )
        if "balanced" in run:
            lines.append(_balanced_line(run["balanced"], width))
        if exact["saved"] > 1e-4:
            lines.append(
                f"{'  exact shares':{width}}{'':10}{exact['predicted']:11,.0f}{'':8}{exact['saved']:8.1%}   "
                f"{exact['of_measured_seconds']:,.0f} ({exact['saved_of_measured']:.1%}) counted from what was measured"
            )
    lines.append("")
    if figures["predictions"]:
        lines.append(
            f"{figures['predictions']} even splits predicted: {figures['mean_off']:.1%} off in the mean, "
            f"{figures['worst_off']:.1%} at worst."
        )
    lines.append(
        f"One number was fitted, to the runs marked calibrated: {figures['exchange_seconds']:,.0f} s of exchange "
        "x 2 (n - 1) / n at the steps of one GPU."
    )
    return "\n".join(lines)


def _balanced_line(balanced: dict[str, float], width: int) -> str:
    predicted = off = kind = ""
    if "predicted" in balanced:
        predicted, off = f"{balanced['predicted']:,.0f}", _percent(balanced["off"])
        kind = "   with the shares that it chose"
    return (
        f"{'  its balancer':{width}}{balanced['measured']:10,.0f}{predicted:>11}{off:>8}{balanced['saved']:8.1%}{kind}"
    )  # fmt: skip


def _percent(part: float) -> str:
    return f"{round(part, 4) + 0.0:+.1%}"
