"""Mixes of machines as a picture: money against time, by an even split and by balanced shares, with their fronts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from engine.cost_mixes import Outcome, Point
from engine.cost_table import WORTH_SAYING, fronts

# By name: type checkers need not find it, it is optional. No window is opened: figures are written by Agg.
import_module("matplotlib").use("Agg")
pyplot: Any = import_module("matplotlib.pyplot")

ROOM = 14
"""pixels between the names of two mixes, one above the other"""
ROOM_LEFT = 0.15
"""part of the width that the names of the cheapest mixes get"""
SHORT = 360
"""seconds below which times are drawn in minutes"""


def plot(path: Path, outcomes: Sequence[Outcome], title: str) -> None:
    """Write a PNG file.

    Raises:
        OSError: it cannot be written.
    """
    on = fronts(outcomes)
    unit, per_hour = ("hours", 1.0) if min(one.balanced.seconds for one in outcomes) >= SHORT else ("minutes", 60.0)

    def place(point: Point) -> tuple[float, float]:
        return point.dollars, point.seconds / 3600 * per_hour

    figure, axes = pyplot.subplots(figsize=(11, 7), constrained_layout=True)
    uneven = [one for one in outcomes if one.saved > WORTH_SAYING]
    for one in uneven:
        axes.plot(*zip(place(one.even), place(one.balanced), strict=True), color="0.85", linewidth=0.8, zorder=1)
    axes.scatter(
        *zip(*(place(one.even) for one in uneven), strict=True) if uneven else ([], []),
        s=16, color="0.6", label="unlike GPUs, even split", zorder=2,
    )  # fmt: skip
    axes.scatter(
        *zip(*(place(one.balanced) for one in outcomes), strict=True),
        s=20, color="tab:blue", label="balanced shares (of like GPUs: either)", zorder=3,
    )  # fmt: skip
    _draw_front(axes, [place(one.even) for one, is_on in zip(outcomes, on["even"], strict=True) if is_on], "0.4", "--",
                "front of even splits")  # fmt: skip
    best = [one for one, is_on in zip(outcomes, on["balanced"], strict=True) if is_on]
    _draw_front(axes, [place(one.balanced) for one in best], "tab:red", "-", "front of balanced shares")
    axes.set(xlabel="cost, $", ylabel=f"time, {unit}", title=title, yscale="log")
    if min(one.balanced.dollars for one in outcomes) > 0:
        axes.set_xscale("log")
        left, right = axes.get_xlim()
        axes.set_xlim(left * (left / right) ** ROOM_LEFT, right)
    _plain_numbers(axes)
    figure.canvas.draw()
    _name(axes, best, place)
    axes.grid(True, which="both", color="0.93", zorder=0)
    axes.legend(loc="upper right")
    try:
        figure.savefig(path, format="png", dpi=110)
    finally:
        pyplot.close(figure)


def _draw_front(axes: Any, places: Sequence[tuple[float, float]], colour: str, style: str, label: str) -> None:
    xs, ys = zip(*sorted(places), strict=True)
    axes.step(xs, ys, where="post", color=colour, linestyle=style, linewidth=1.2, label=label, zorder=4)
    if style == "-":
        axes.scatter(xs, ys, s=42, facecolors="none", edgecolors=colour, zorder=5)


def _name(axes: Any, best: Sequence[Outcome], place: Callable[[Point], tuple[float, float]]) -> None:
    """Names beside the front, where there is room for them."""
    free_below = float("inf")
    for one in sorted(best, key=lambda one: -one.balanced.seconds):
        height = axes.transData.transform(place(one.balanced))[1]
        if height > free_below:
            continue
        free_below = height - ROOM
        axes.annotate(
            one.name, place(one.balanced), xytext=(-6, -6), textcoords="offset points", ha="right", va="top", fontsize=8
        )


def _plain_numbers(axes: Any) -> None:
    """10 and 20, not powers of ten."""
    ticker: Any = import_module("matplotlib.ticker")
    for axis in (axes.xaxis, axes.yaxis) if axes.get_xscale() == "log" else (axes.yaxis,):
        axis.set_major_locator(ticker.LogLocator(subs=(1.0, 1.2, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 7.0)))
        axis.set_minor_locator(ticker.NullLocator())
        axis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:,.4g}"))
