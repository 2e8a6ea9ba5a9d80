"""The figures of benchmarks.balance as a picture: how much of the hardware each method uses.

    python -m benchmarks.balance_plot --out docs/balance.png         # of benchmarks/results/balance.json

Needs matplotlib.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.harness import ROOT

METHODS = {
    "ddp": ("PyTorch DDP", "#b8b8b8"),
    "even": ("even split", "#8c8c8c"),
    "original": ("as this project began", "#9ecae1"),
    "auto": ("this engine (auto)", "#1f6fb4"),
    "oracle": ("oracle", "#ffffff"),
}
"""in the order of their bars: name and colour"""
BATCH_SIZE = 2048


def chosen(settings: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The settings that are drawn: those of one kind and batch size, on one machine before those over a network."""
    plain = [one for one in settings if one["kind"] == "plain" and one["batch_size"] == BATCH_SIZE]
    return sorted(plain, key=lambda one: one["network"] != "local")


def plot(path: Path, settings: Sequence[Mapping[str, Any]]) -> None:
    """Write a PNG file.

    Raises:
        OSError: it cannot be written.
    """
    # By name: type checkers need not find it, it is optional. No window is opened: figures are written by Agg.
    import_module("matplotlib").use("Agg")
    pyplot: Any = import_module("matplotlib.pyplot")
    figure, axes = pyplot.subplots(figsize=(10, 4), constrained_layout=True)
    width = 0.8 / len(METHODS)
    for number, (method, (name, color)) in enumerate(METHODS.items()):
        places = [place + (number - (len(METHODS) - 1) / 2) * width for place in range(len(settings))]
        heights = [one[f"E_{method}"] for one in settings]
        axes.bar(places, heights, width * 0.92, label=name, color=color, edgecolor="0.35", linewidth=0.6)
        if method == "auto":
            for place, height in zip(places, heights, strict=True):
                axes.text(place, height - 0.02, f"{height:.2f}", ha="center", va="top", rotation=90, color="white")
    where = {"local": "one machine", "1gbit": "1 Gbit/s"}
    labels = [f"{one['ratio'].replace(':', ' : ')}\n{where.get(one['network'], one['network'])}" for one in settings]
    axes.set_xticks(range(len(settings)), labels, fontsize=9)
    axes.set(ylim=(0, 1.09), ylabel="rows/s, as a part of the ranks' own rates", xlabel="speeds of the ranks")
    axes.grid(axis="y", color="0.9")
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.legend(loc="outside upper center", ncols=len(METHODS), frameon=False, fontsize=9)
    try:
        figure.savefig(path, format="png", dpi=110)
    finally:
        pyplot.close(figure)


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw as the command line says; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.balance_plot",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    results = ROOT / "benchmarks" / "results" / "balance.json"
    parser.add_argument(
        "--result", type=Path, default=results, metavar="PATH", help="what benchmarks.balance has written"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.png")
    options = parser.parse_args(arguments)
    try:
        settings = chosen(json.loads(options.result.read_text())["settings"])
        plot(options.out, settings)
    except ImportError:
        print("benchmarks.balance_plot: matplotlib is missing; pip install matplotlib", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"benchmarks.balance_plot: {error.filename}: {error.strerror}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
