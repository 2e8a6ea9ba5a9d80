"""A simulated run as a picture: seconds of each step by policy, and the shares over time."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from engine.simulation import Run, Scenario

# By name: type checkers need not find it, it is optional. No window is opened: figures are written by Agg.
import_module("matplotlib").use("Agg")
pyplot: Any = import_module("matplotlib.pyplot")

COLOURS = {"even": "0.6", "epoch": "tab:orange", "auto": "tab:blue", "oracle": "black"}
MOST_LINES = 16
"""ranks up to which each has a line of its own"""
MOST_POINTS = 1000
"""steps drawn one by one; of more the medians of equal runs"""


def plot(path: Path, scenario: Scenario, runs: Sequence[Run]) -> None:
    """Write a PNG file.

    Raises:
        OSError: it cannot be written.
    """
    figure, (above, below) = pyplot.subplots(2, 1, figsize=(10, 8), sharex=True, constrained_layout=True)
    for run in runs:
        done, seconds = _thinned(run)
        above.plot(done, seconds * 1000, color=COLOURS.get(run.policy), label=run.policy, linewidth=1)
    above.set(ylabel="step, ms", ylim=(0, None), title=f"{scenario.hardware.ranks:,} ranks")
    above.legend()
    shown = next((run for name in ("auto", "epoch", "oracle", "even") for run in runs if run.policy == name), runs[0])
    _draw_shares(below, shown)
    oracle = next((run for run in runs if run.policy == "oracle" and run is not shown), None)
    if oracle is not None and scenario.hardware.ranks <= MOST_LINES:
        _draw_shares(below, oracle, dashed=True)
    below.set(
        xlabel="steps done, those done again after a failure included",
        ylabel=f"rows per rank, {shown.policy}",
        ylim=(0, None),
    )
    try:
        figure.savefig(path, format="png", dpi=110)
    finally:
        pyplot.close(figure)


def _thinned(run: Run) -> tuple[np.ndarray, np.ndarray]:
    seconds = np.array(run.step_seconds)
    group = -(-len(seconds) // MOST_POINTS)
    starts = np.arange(0, len(seconds), group)
    return starts, np.array([np.median(seconds[start : start + group]) for start in starts])


def _draw_shares(axes: Any, run: Run, dashed: bool = False) -> None:
    """A line per rank; of many ranks the least, the middle and the most."""
    first = [done for done, _ in run.shares] + [len(run.step_seconds)]
    shares_TR = np.array([shares_R for _, shares_R in run.shares] + [run.shares[-1][1]])
    ranks = shares_TR.shape[1]
    if ranks > MOST_LINES:
        parts = (0, 5, 50, 95, 100)
        lines = {f"{part}th percentile": np.nanpercentile(shares_TR, part, axis=1) for part in parts}
    else:
        lines = {f"rank {rank}": shares_TR[:, rank] for rank in range(ranks)}
    for number, (label, rows_T) in enumerate(lines.items()):
        style: dict[str, Any] = {"linestyle": ":"} if dashed else {"label": label}
        axes.step(first, rows_T, where="post", color=f"C{number % 10}", **style)
    if not dashed:
        axes.legend(fontsize="small", ncols=4)
