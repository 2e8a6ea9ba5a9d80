"""Pictures that --plot asks for: without matplotlib, which is optional, a command goes on without them."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from engine.errors import UsageError


def plot_if_possible(program: str, module: str, path: Path, *shown: Any) -> None:
    """Call a module's `plot(path, *shown)`; say so where matplotlib is missing.

    Args:
        program: that says it.
        module: name of the module with the plot, which imports matplotlib.
        path: of the picture.
        shown: what the plot shows.

    Raises:
        UsageError: the picture cannot be written.
    """
    try:
        plot = import_module(module).plot
    except ImportError:
        print(f"{program}: no {path}: matplotlib is missing; pip install matplotlib", file=sys.stderr)
        return
    try:
        plot(path, *shown)
    except OSError as error:
        raise UsageError(f"--plot {path}: {error.strerror or error}") from None
