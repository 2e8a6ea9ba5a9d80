"""The benchmarks run and say what they must; never how fast."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.report import Target, ratio, verdicts

ROOT = Path(__file__).parents[2]


def run(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, cwd=ROOT)


def test_the_reader_benchmark_ends_with_its_figures(tmp_path):
    methods = ["memcpy_int64", "ours_lz4", "ours_uncompressed", "numpy_memmap", "h5py_rows_dataloader"]
    options = ["--rows", 4000, "--batch-size", 64, "--rounds", 1, "--seconds", 0.05, "--only", ",".join(methods)]
    result = run("benchmarks.reader", *options, "--workdir", tmp_path, "--result", tmp_path / "result.json")
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout.splitlines()[-1])
    assert found == json.loads((tmp_path / "result.json").read_text())
    assert all(found[name]["rows_per_second"] > 0 for name in methods)
    assert found["targets"]["ours_lz4 / numpy_memmap"]["met"] in (True, False)
    assert set(found["missed"]) <= set(found["targets"])
    assert "ours_lz4 / ffcv" in found["not_judged"]


@pytest.mark.parametrize("options", [["--rows", "0"], ["--only", "nothing"], ["--rounds", "x"]])
def test_wrong_options_are_told_in_one_line(options):
    result = run("benchmarks.reader", *options)
    assert result.returncode == 2
    assert result.stderr.startswith("benchmarks.reader: ")
    assert result.stderr.count("\n") == 1


def test_a_target_is_met_missed_or_not_judged():
    targets = [
        Target("met", 2.0, at_least=1),
        Target("missed", 2.0, at_most=1),
        Target("unknown", ratio(1.0, None), at_least=1),
    ]
    found = verdicts(targets)
    assert (found["missed"], found["not_judged"]) == (["missed"], ["unknown"])
    assert found["targets"]["met"] == {"measured": 2.0, "at_least": 1, "met": True}
