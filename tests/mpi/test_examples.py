"""The examples run, on as many ranks as there are."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

pytestmark = pytest.mark.mpi


def test_a_model_and_data_of_ones_own(session, capsys):
    runpy.run_path(str(Path(__file__).parents[2] / "examples" / "own_model.py"), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == (5 if session.root else 0)
    if session.root:
        losses = [float(re.search(r"loss ([0-9.]+)", line).group(1)) for line in lines]
        assert losses[-1] < losses[0] / 2
