"""A sweep as a picture: the score of every trial, by setting, the best at the top."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from engine.sweep_table import Line

# By name: type checkers need not find it, it is optional. No window is opened: figures are written by Agg.
import_module("matplotlib").use("Agg")
pyplot: Any = import_module("matplotlib.pyplot")

MOST = 40
"""settings shown, the best ones"""


def plot(path: Path, lines: Sequence[Line]) -> None:
    """Write a PNG file.

    Raises:
        OSError: it cannot be written.
    """
    shown = [line for line in lines if line.scores][:MOST]
    figure, axes = pyplot.subplots(figsize=(10, 1.5 + 0.4 * max(1, len(shown))), constrained_layout=True)
    for place, line in enumerate(shown):
        axes.plot(line.scores, [place] * len(line.scores), "o", color="tab:blue", alpha=0.5, markersize=5)
        axes.plot([line.score], [place], "|", color="black", markersize=16, markeredgewidth=2)
    labels = [", ".join(f"{name}={value}" for name, value in line.settings) or "as given" for line in shown]
    axes.set_yticks(range(len(shown)), labels, fontsize="small")
    axes.invert_yaxis()
    axes.grid(axis="x", color="0.9")
    left_out = len([line for line in lines if line.scores]) - len(shown)
    axes.set(
        xlabel="macro-F1 on the validation split; a dot per seed, the bar is their mean",
        title=f"the best {len(shown)} settings ({left_out} more)" if left_out else None,
    )
    try:
        figure.savefig(path, format="png", dpi=110)
    finally:
        pyplot.close(figure)
