"""Where the ranks of benchmarks.balance run: this machine or the lab's hosts, each on one core with a CPU quota."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from benchmarks.harness import ROOT, Skipped
from engine.environment import wheel_mpi_prefix

LAB = ROOT / "tests" / "cluster" / "lab"
CGROUPS = Path("/sys/fs/cgroup")
PERIOD = 10_000
"""microseconds: a quota spent in one long burst would look like jitter, not like a slower machine"""
HEADROOM = 0.96
"""part of a core that ranks sharing it get together"""
JOIN = """
place=$((${OMPI_COMM_WORLD_RANK:-$BENCH_RANK} + 1))
group=$(echo "$1" | cut -d, -f$place)
core=$(echo "$2" | cut -d, -f$place)
shift 2
[ -z "$group" ] || echo $$ > "$group/cgroup.procs"
exec taskset -c "$core" "$@"
"""
"""a shell's program: go into the rank's control group, if it has one, and stay on its core"""


def groups_folder() -> Path | None:
    """Where CPU control groups are made: version 2 or 1; None where there are none."""
    if (CGROUPS / "cgroup.controllers").exists():
        with suppress(OSError):
            (CGROUPS / "cgroup.subtree_control").write_text("+cpu")
        return CGROUPS
    return CGROUPS / "cpu" if (CGROUPS / "cpu").is_dir() else None


def parts_of_core(speeds: Sequence[float], cores: int) -> list[float]:
    """The part of a core that each rank gets, when ranks are dealt to the cores in turn; 1: no quota."""
    sharing = -(-len(speeds) // cores)
    whole = 1.0 if sharing == 1 else HEADROOM / sharing
    return [speed * whole for speed in speeds]


def limit(group: Path, part: float) -> None:
    """Give the processes of a control group so much of a core; from 1 on all of it."""
    quota = round(part * PERIOD)
    if (group / "cpu.max").exists():
        (group / "cpu.max").write_text(f"{quota if part < 1 else 'max'} {PERIOD}")
        return
    (group / "cpu.cfs_quota_us").write_text("-1")
    (group / "cpu.cfs_period_us").write_text(str(PERIOD))
    if part < 1:
        (group / "cpu.cfs_quota_us").write_text(str(quota))


class Place:
    """Ranks on this machine, with a control group for each.

    Args:
        ranks: how many.
        quotas: whether any rank gets less than a core.

    Raises:
        Skipped: no quotas can be set here.
    """

    network = "local"

    def __init__(self, ranks: int, quotas: bool) -> None:
        self.ranks = ranks
        cores = sorted(os.sched_getaffinity(0))
        self.cores = [cores[rank % len(cores)] for rank in range(ranks)]
        self.groups: list[Path] = []
        if quotas:
            self._make_groups()

    def _make_groups(self) -> None:
        folder = groups_folder()
        if folder is None:
            raise Skipped("no CPU control groups here, so no rank can be slowed down")
        self.groups = [folder / f"balance-{os.getpid()}-{rank}" for rank in range(self.ranks)]
        try:
            for group in self.groups:
                group.mkdir(exist_ok=True)
                limit(group, 1)
        except OSError as error:
            self._remove_groups()
            raise Skipped(f"CPU quotas cannot be set ({error}); root is needed") from None

    def _remove_groups(self) -> None:
        for group in self.groups:
            for _ in range(100):  # the last process may still be ending
                with suppress(FileNotFoundError):
                    try:
                        group.rmdir()
                    except OSError:
                        time.sleep(0.05)
                        continue
                break

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._remove_groups()

    def slow(self, rank: int, part: float) -> None:
        """Give a rank's processes so much of a core."""
        if self.groups:
            limit(self.groups[rank], part)

    def start_alone(self, rank: int, command: Sequence[str]) -> subprocess.Popen[bytes]:
        """Start a process of a rank's, without MPI."""
        return self._popen(self._on_its_core(command), self._environment() | {"BENCH_RANK": str(rank)})

    def start_job(self, command: Sequence[str]) -> subprocess.Popen[bytes]:
        """Start all ranks under mpirun."""
        line = [*self._mpirun(), "--oversubscribe", *self._on_its_core(command)]
        return self._popen(line, self._environment())

    def _mpirun(self) -> list[str]:
        mpirun = Path(sys.executable).parent / "mpirun"
        line = [str(mpirun) if mpirun.exists() else "mpirun", "--bind-to", "none", "-n", str(self.ranks)]
        for name in sorted(self._own_environment()):
            line += ["-x", name]
        return line

    def _on_its_core(self, command: Sequence[str]) -> list[str]:
        groups, cores = (",".join(map(str, values)) for values in (self.groups, self.cores))
        return ["sh", "-c", JOIN, "sh", groups, cores, *command]

    def _own_environment(self) -> dict[str, str]:
        prefix = wheel_mpi_prefix()
        found = {"PYTHONPATH": str(ROOT), "GLOO_SOCKET_IFNAME": self._interface()}
        if os.geteuid() == 0:
            found |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
        return found | ({"OPAL_PREFIX": str(prefix)} if prefix else {})

    def _environment(self) -> dict[str, str]:
        return {**os.environ, **self._own_environment()}

    def _interface(self) -> str:
        return "lo"

    def _popen(self, line: Sequence[str], environment: dict[str, str]) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            line, env=environment, cwd=ROOT, stdin=subprocess.DEVNULL, start_new_session=True, stdout=subprocess.DEVNULL
        )


class LabPlace(Place):
    """One rank on each of the lab's hosts, joined by a network of a given rate."""

    def __init__(self, ranks: int, rate: str) -> None:
        self.network = rate
        super().__init__(ranks, quotas=False)
        for tool in ("ip", "tc", "unshare", "ssh-keygen"):
            if shutil.which(tool) is None:
                raise Skipped(f"{tool} is missing, which the lab's hosts need")
        if os.geteuid() != 0 or not Path("/usr/sbin/sshd").exists():
            raise Skipped("the lab's hosts need root and openssh-server")
        folder = groups_folder()
        up = subprocess.run([str(LAB), "up", str(ranks), rate], capture_output=True, text=True, check=False)
        if up.returncode:
            if "already up" not in up.stderr:
                self._down()
            raise Skipped(f"the lab did not come up: {up.stderr.strip()}")
        if folder is None:
            self._down()
            raise Skipped("no CPU control groups here, so no host can be slowed down")
        self._lab_groups = [folder / f"lab-host{rank + 1}" for rank in range(ranks)]

    def __exit__(self, *error: object) -> None:
        self._down()

    def slow(self, rank: int, part: float) -> None:
        """Give a host so much of a core."""
        limit(self._lab_groups[rank], part)

    def start_alone(self, rank: int, command: Sequence[str]) -> subprocess.Popen[bytes]:
        """Start a process of a rank's on its host, without MPI."""
        return self._popen(self._on_host(rank, {"BENCH_RANK": str(rank)}, self._on_its_core(command)), dict(os.environ))

    def start_job(self, command: Sequence[str]) -> subprocess.Popen[bytes]:
        """Start all ranks, with mpirun on the first host."""
        hosts = ",".join(f"host{rank + 1}:1" for rank in range(self.ranks))
        line = [*self._mpirun(), "-x", "PATH", "-H", hosts, *self._on_its_core(command)]
        return self._popen(self._on_host(0, {}, line), dict(os.environ))

    def _on_host(self, rank: int, more: dict[str, str], command: Sequence[str]) -> list[str]:
        settings = [f"{name}={value}" for name, value in (self._own_environment() | more).items()]
        return [str(LAB), "run", f"host{rank + 1}", "env", *settings, *command]

    def _interface(self) -> str:
        return "eth0"

    def _down(self) -> None:
        subprocess.run([str(LAB), "down"], capture_output=True, check=False)


def end(process: subprocess.Popen[bytes], seconds: float = 5.0) -> None:
    """End a process that `start_alone` or `start_job` made, and what it started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is not None:
            return
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
