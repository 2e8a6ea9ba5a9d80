"""What a command and all its processes take: time, CPU time, and on wish memory and disk, sampled from outside."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.harness import ROOT

SAMPLE_SECONDS = 0.1


@dataclass(frozen=True)
class Taken:
    """What a command took."""

    seconds: float
    cpu_seconds: float
    """of all its processes, those of the system included"""
    out: str
    error: str


@dataclass(frozen=True)
class Peak:
    """The most that was seen at one moment."""

    memory_bytes: int
    """proportional set size (shared pages count once) of all its processes"""
    processes: int
    disk_bytes: int
    """blocks of the files in its folder, apart from the result"""


def timed(command: Sequence[str], folder: Path, *, cores: set[int], log: Path) -> Taken:
    """Run a command to its end.

    Args:
        command: words.
        folder: for its temporary files.
        cores: that it may use.
        log: prefix of files for what it writes.

    Raises:
        OSError: it failed.
    """
    os.sync()  # what the command before left to be written is not this one's
    began = time.perf_counter()
    with _started(command, folder, cores, log) as process:
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
    _check(command, process, log)
    out, error = (log.with_suffix(suffix).read_text(errors="replace") for suffix in (".out", ".err"))
    return Taken(seconds, usage.ru_utime + usage.ru_stime, out, error)


def watched(command: Sequence[str], folder: Path, result: Path, *, cores: set[int], log: Path) -> Peak:
    """Run a command to its end and look at it all the time, which slows it down.

    Args:
        command: words.
        folder: for its temporary files, and where the result stands.
        result: that its bytes on disk do not count.
        cores: that it may use.
        log: prefix of files for what it writes.

    Raises:
        OSError: it failed.
    """
    memory = disk = most = 0
    with _started(command, folder, cores, log) as process:
        while process.poll() is None:
            sizes = [_memory(pid) for pid in _session(process.pid)]
            memory, most = max(memory, sum(sizes)), max(most, len(sizes))
            disk = max(disk, _disk(folder, result))
            time.sleep(SAMPLE_SECONDS)
    _check(command, process, log)
    return Peak(memory, most, disk)


def _started(command: Sequence[str], folder: Path, cores: set[int], log: Path) -> subprocess.Popen[bytes]:
    environment = os.environ | {"TMPDIR": str(folder), "PYTHONPATH": str(ROOT)}
    with log.with_suffix(".out").open("wb") as out, log.with_suffix(".err").open("wb") as error:
        return subprocess.Popen(
            command,
            stdout=out,
            stderr=error,
            cwd=ROOT,
            env=environment,
            start_new_session=True,
            preexec_fn=lambda: os.sched_setaffinity(0, cores),
        )


def _check(command: Sequence[str], process: subprocess.Popen[bytes], log: Path) -> None:
    if process.returncode:
        lines = log.with_suffix(".err").read_text(errors="replace").strip().splitlines()
        last = lines[-1] if lines else "without a word"
        raise OSError(f"{' '.join(command[1:4])} ended with status {process.returncode}: {last}")


def _session(leader: int) -> list[int]:
    """The processes of a session; its children stay in it, also when a parent ends before them."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            fields = Path("/proc", name, "stat").read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue  # it has ended
        if int(fields[3]) == leader:
            found.append(int(name))
    return found


def _memory(pid: int) -> int:
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass  # it has ended
    return 0


def _disk(folder: Path, result: Path) -> int:
    """Bytes of the files in a folder, a file with several names once."""
    sizes: dict[tuple[int, int], int] = {}
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if Path(parent, name) != result]
        for name in names:
            try:
                status = os.lstat(os.path.join(parent, name))
            except OSError:
                continue  # removed meanwhile
            sizes[status.st_dev, status.st_ino] = status.st_blocks * 512
    return sum(sizes.values())
