"""What this machine must have before setting up starts; every finding is one line with its cure."""

from __future__ import annotations

import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

GIB = 1024**3
# A CPU build of torch and all the rest measured 1.5 GiB when installed; pip holds downloads and unpacked files at once.
DISK_NEEDED = 3 * GIB
# The CUDA build of torch (what the package index serves on x86-64) with NVIDIA's libraries.
DISK_FOR_CUDA_TORCH = 12 * GIB
CACHE_NEEDED = GIB
COMPILE_SECONDS = 60
# As in tests/chromium.py.
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "headless_shell")

FreeSpace = Callable[[Path], int]

# C++20 and Python's headers, the two things that both Horovod and the native modules need.
PROBE = """
#include <Python.h>
#include <concepts>
#include <span>
template <std::integral T> T first(std::span<T> values) { return values[0]; }
int probe(int *values) { return first(std::span<int>(values, 1)); }
"""


def free_space(path: Path) -> int:
    """Free bytes on the disk that holds `path`, or would hold it once it is made."""
    return shutil.disk_usage(nearest_existing(path)).free


def nearest_existing(path: Path) -> Path:
    """`path`, or the closest parent of it that exists."""
    while not path.exists():
        path = path.parent
    return path


def find_problems(root: Path, cache: Path, environ: Mapping[str, str], free: FreeSpace = free_space) -> list[str]:
    """All that is missing on this machine, one line each; empty when setting up can start."""
    problems = [_platform_problem(), _python_problem(), _venv_problem()]
    problems += [_compiler_problem(environ), _make_problem(environ), _mpi_problem(environ), _cuda_problem(environ)]
    problems += [_writable_problem(root), _writable_problem(cache)]
    problems += [_disk_problem(root, DISK_NEEDED, free), _disk_problem(cache, CACHE_NEEDED, free)]
    return [problem for problem in problems if problem is not None]


def find_notes(root: Path, environ: Mapping[str, str], free: FreeSpace = free_space) -> list[str]:
    """What may go wrong later, or is left out, without being wrong now."""
    notes = []
    available = free(root)
    if DISK_NEEDED <= available < DISK_FOR_CUDA_TORCH:
        notes.append(
            f"note: {available / GIB:.1f} GiB are free: enough for a CPU build of torch, not for a CUDA build "
            f"({DISK_FOR_CUDA_TORCH // GIB} GiB), in case that is what pip picks here"
        )
    names = [environ["CHROMIUM"]] if environ.get("CHROMIUM") else BROWSERS
    if not any(shutil.which(name, path=environ.get("PATH")) for name in names):
        notes.append(
            "note: no Chromium is found, so the tests of reports in a browser are skipped: install it for them "
            "(Debian: apt-get install chromium), or name one with CHROMIUM=; nothing else needs it"
        )
    return notes


def _platform_problem() -> str | None:
    if sys.platform == "linux":
        return None
    return f"this is {sys.platform}, and only Linux is supported: use a Linux machine or container"


def _python_problem() -> str | None:
    if sys.version_info[:2] == (3, 11):
        return None
    found = ".".join(map(str, sys.version_info[:3]))
    return (
        f"Python {found} runs this, and Horovod 0.28.1 and mrjob 0.7.4 need 3.11: install Python 3.11 and name it, "
        "make setup PYTHON=/path/to/python3.11"
    )


def _venv_problem() -> str | None:
    # Debian keeps ensurepip out of its python3 package; venv alone imports and then fails half way.
    if importlib.util.find_spec("venv") and importlib.util.find_spec("ensurepip"):
        return None
    return f"{sys.executable} has no venv and ensurepip modules: install them (Debian: apt-get install python3.11-venv)"


def compiler(environ: Mapping[str, str]) -> list[str] | None:
    """The C++ compiler's command ($CXX, g++, c++ or clang++), or None where none is found."""
    if environ.get("CXX"):
        command = shlex.split(environ["CXX"])
        return command if shutil.which(command[0], path=environ.get("PATH")) else None
    for name in ("g++", "c++", "clang++"):
        if found := shutil.which(name, path=environ.get("PATH")):
            return [found]
    return None


def _compiler_problem(environ: Mapping[str, str]) -> str | None:
    command = compiler(environ)
    if command is None:
        named = f"CXX={environ['CXX']} is not on PATH" if environ.get("CXX") else "no C++ compiler found"
        return f"{named}: Horovod and the native modules are compiled, install one (Debian: apt-get install g++)"
    c_compiler = shlex.split(environ.get("CC") or sysconfig.get_config_var("CC") or "cc")[0]
    if not shutil.which(c_compiler, path=environ.get("PATH")):
        return f"the C compiler {c_compiler} that this Python builds with is missing: install it, or set CC to another"
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "probe.cc")
        source.write_text(PROBE)
        output = str(Path(folder, "probe.so"))
        include = f"-I{sysconfig.get_path('include')}"
        arguments = [*command, "-std=c++20", "-shared", "-fPIC", include, str(source), "-o", output]
        result = _run(arguments, environ)
    if result is not None and result.returncode == 0:
        return None
    said = "" if result is None else result.stderr
    if "Python.h" in said:
        return (
            f"Python's headers (Python.h) are missing for {sys.executable}: install them "
            "(Debian: apt-get install python3.11-dev), or name another Python 3.11 with PYTHON="
        )
    first = next((line for line in said.splitlines() if "error" in line), "it failed").strip()
    return f"{command[0]} does not compile C++20 ({first}), which torch needs: install GCC 11 or newer, or set CXX"


def _make_problem(environ: Mapping[str, str]) -> str | None:
    if shutil.which("make", path=environ.get("PATH")):
        return None
    return "no make found, and Horovod is built with it: install it (Debian: apt-get install make)"


def _mpi_problem(environ: Mapping[str, str]) -> str | None:
    kind = environ.get("ENGINE_MPI", "wheel")
    if kind not in ("wheel", "system"):
        return f"ENGINE_MPI={kind} is neither wheel (Open MPI from a package, the default) nor system (mpicxx on PATH)"
    missing = [name for name in ("mpicxx", "mpirun") if not shutil.which(name, path=environ.get("PATH"))]
    if kind == "system" and missing:
        return (
            f"ENGINE_MPI=system, and {' and '.join(missing)} is not on PATH: load your MPI's module "
            "(module load openmpi) or install it (Debian: apt-get install libopenmpi-dev), or unset ENGINE_MPI"
        )
    return None


def cuda_home(environ: Mapping[str, str]) -> Path | None:
    """The CUDA toolkit's folder: HOROVOD_CUDA_HOME, CUDA_HOME, or the one whose nvcc is on PATH."""
    for name in ("HOROVOD_CUDA_HOME", "CUDA_HOME"):
        if environ.get(name):
            home = Path(environ[name])
            return home if (home / "bin" / "nvcc").exists() else None
    nvcc = shutil.which("nvcc", path=environ.get("PATH"))
    return Path(nvcc).resolve().parents[1] if nvcc else None


def _cuda_problem(environ: Mapping[str, str]) -> str | None:
    operations = environ.get("HOROVOD_GPU_OPERATIONS", "")
    if operations not in ("", "NCCL", "MPI"):
        return f"HOROVOD_GPU_OPERATIONS={operations} is not known to Horovod: set NCCL (or MPI), or unset it for CPUs"
    if operations and cuda_home(environ) is None:
        return (
            f"HOROVOD_GPU_OPERATIONS={operations} needs the CUDA toolkit's nvcc, which is not there: install the "
            "toolkit of torch's CUDA version and set CUDA_HOME to it, or unset HOROVOD_GPU_OPERATIONS for a CPU build"
        )
    return None


def _writable_problem(folder: Path) -> str | None:
    existing = nearest_existing(folder)
    if existing.is_dir() and os.access(existing, os.W_OK | os.X_OK):
        return None
    return (
        f"{folder} cannot be written ({existing} is no folder or is read-only): change that, or use another folder "
        "(XDG_CACHE_HOME names the one for caches)"
    )


def _disk_problem(folder: Path, needed: int, free: FreeSpace) -> str | None:
    available = free(folder)
    if available >= needed:
        return None
    return f"{available / GIB:.1f} GiB are free for {folder}, and setting up needs {needed // GIB} GiB: make room there"


def _run(command: list[str], environ: Mapping[str, str]) -> subprocess.CompletedProcess[str] | None:
    """Run a probe; None when it could not be started or did not end."""
    try:
        return subprocess.run(
            command, env=dict(environ), capture_output=True, text=True, timeout=COMPILE_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
