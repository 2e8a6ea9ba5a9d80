"""The commands and programs of docs/tutorial-*.md are run as they stand there, in their order, on fewer reviews."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks_of(name: str, language: str) -> list[str]:
    """The fenced blocks of a page in one language."""
    return [code for kind, code in BLOCK.findall((ROOT / "docs" / name).read_text()) if kind == language]


def made_smaller(code: str, sizes: dict[str, str]) -> str:
    """The same with other sizes, each of which must be there to be changed."""
    for size, smaller in sizes.items():
        assert size in code, f"the tutorial no longer says {size}"
        code = code.replace(size, smaller)
    return code


def run_bash(script: str, folder: Path, seconds: int) -> str:
    """What a script prints, run in this environment as a reader would have it; all that it has started ends with it."""
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    if os.getuid() == 0:
        environment |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    shell = subprocess.Popen(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = shell.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(shell.pid, signal.SIGTERM)
        output, _ = shell.communicate(timeout=30)
        pytest.fail(f"the tutorial's commands have not ended in {seconds} s:\n{output[-4000:]}")
    assert shell.returncode == 0, output[-4000:]
    return output


@pytest.mark.slow
@pytest.mark.skipif(len(os.sched_getaffinity(0) & {0, 1}) < 2, reason="the tutorial ties ranks to the cores 0 and 1")
def test_the_laptop_tutorial_from_reviews_to_a_resumed_run(tmp_path):
    setup, *rest = blocks_of("tutorial-laptop.md", "bash")
    assert "make setup" in setup  # which these tests run in, and cannot run
    script = made_smaller("\n".join(rest), {"--rows 20000": "--rows 3000", "--epochs 3": "--epochs 1"})
    output = run_bash(script, tmp_path, 900)
    assert "test split" in output
    assert "\tNot bad at all.\twithout " in output
    assert "\tThe lid isn't awful.\n" in output
    assert "step 0: shares [96, 32] (start)" in output  # --shares 3,1
    # 137 from mpirun, or 1 where the other rank was first to notice.
    assert re.search(r"^ended with status (137|1)$", output, re.MULTILINE)
    assert re.search(r"KILLED: going on from step \d+, 0 of 1 epochs done", output)
    assert sorted(path.name for path in tmp_path.iterdir() if (path / "metrics.jsonl").exists()) == [
        "BY-HAND", "EVEN", "KILLED", "RUN", "UNEVEN",
    ]  # fmt: skip
    for run in ("EVEN", "UNEVEN", "KILLED"):
        assert '"status": "finished"' in (tmp_path / run / "metrics.jsonl").read_text().splitlines()[-1]


def test_the_programs_for_own_data_run(tmp_path):
    programs = blocks_of("tutorial-own.md", "python")
    output = []
    for program in programs:
        (tmp_path / "program.py").write_text(program)
        output.append(run_bash("python program.py", tmp_path, 120))
        if 'DatasetWriter("OWN"' in program:
            output.append(run_bash("\n".join(blocks_of("tutorial-own.md", "bash")), tmp_path, 300))
    told = "".join(output)
    assert "4000 rows in buckets [16, 32]" in told
    assert "OWN-RUN: finished" in told
    assert "together 4000 of 4000" in told
    assert "(400, 200) (350, 250)" in told
    *_, last = re.findall(r"step 150: \((\d+), (\d+)\)", told)
    assert abs(int(last[0]) - 400) <= 4
    assert sum(map(int, last)) == 600
