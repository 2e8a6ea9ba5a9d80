"""The examples that need no ranks."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from tests.synthetic import write_dataset

# As on a machine that has neither.
WITHOUT_MPI = """
import runpy, sys
sys.modules["horovod"] = sys.modules["mpi4py"] = None
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_the_reader_feeds_a_plain_torch_loop_without_horovod_or_mpi(tmp_path):
    write_dataset(tmp_path / "data")
    example = Path(__file__).parents[2] / "examples" / "plain_torch.py"
    result = subprocess.run(
        [sys.executable, "-c", WITHOUT_MPI, str(example), str(tmp_path / "data")],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    losses = [float(value) for value in re.findall(r"loss ([0-9.]+)", result.stdout)]
    assert len(losses) == 3
    assert losses[-1] < losses[0]
