"""The lab's hosts for tests: two namespaces with sshd, hostname and /dev/shm of their own, joined by a network."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
LAB = Path(__file__).with_name("lab")
TOOLS = ("ip", "tc", "unshare", "ssh-keygen", "ssh")
BIN = Path(sys.executable).parent
HOROVODRUN = [BIN / "horovodrun", "-np", 2, "-H", "host1:1,host2:1"]
MPIRUN = ["mpirun", "-n", 2, "-H", "host1:1,host2:1", "--bind-to", "none"]
ACTIVATED = os.environ | {"PATH": f"{BIN}:{os.environ['PATH']}"}
"""as in an activated environment: mpirun is found by its name"""
PATIENCE = 90
"""seconds in which a job and its launcher's daemons must have ended after a cable was cut"""


def missing() -> str:
    """Why this machine cannot have the lab's hosts; empty where it can."""
    if os.geteuid() != 0:
        return "root is needed for network namespaces"
    lacking = [tool for tool in TOOLS if shutil.which(tool) is None]
    if not Path("/usr/sbin/sshd").exists():
        lacking.append("sshd (openssh-server)")
    return f"missing on this machine: {', '.join(lacking)}" if lacking else ""


def run(*words: object) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return subprocess.run(
        [str(word) for word in words],
        env=ACTIVATED,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@contextmanager
def two_hosts() -> Iterator[str]:
    """Have two hosts at 1 Gbit/s; yields why there are none, empty where there are."""
    if why := missing():
        yield why
        return
    up = run(LAB, "up", 2, "1gbit")
    if up.returncode and "already up" in up.stderr:
        yield "the lab is in use; end it with tests/cluster/lab down"
        return
    try:
        yield up.stderr.strip() if up.returncode else ""
    finally:
        run(LAB, "down")


def on_host1(*words: object) -> list[str]:
    """The line that runs a command on the first host, as a user there would."""
    own = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    return [str(w) for w in (LAB, "run", "host1", "env", *(f"{name}={value}" for name, value in own.items()), *words)]


def training(data: Path, out: Path, *more: object) -> list[object]:
    """A small training run."""
    exact = ["--precision", "float64", "--dropout", 0, "--balance", "off", "--log-every", 1]
    size = ["--epochs", 1, "--batch-size", 48, "--hidden-size", 8, "--embedding-size", 8, "--ngram-entries", 500]
    return [sys.executable, "-m", "engine.train", "--data", data, "--out", out, "--device", "cpu", *exact, *size, *more]


def events(out: Path) -> list[dict[str, Any]]:
    """The whole lines of metrics.jsonl."""
    path = out / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().split("\n")[:-1]] if path.exists() else []


def processes() -> set[int]:
    """Of both hosts, but their sshd."""
    found = set()
    for host in ("host1", "host2"):
        listed = subprocess.run(["ip", "netns", "pids", host], capture_output=True, text=True, check=True)
        found |= {int(pid) for pid in listed.stdout.split() if "sshd" not in _command(int(pid))}
    return found


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except OSError:
        return ""


def cut_while_training(data: Path, out: Path, step: int, timeout: int = 4) -> float:
    """Cut host2's cable after a step; all processes on both sides must end, and the lost rank be named.

    Returns:
        Seconds until the last process had ended.
    """
    before = processes()
    line = on_host1(*MPIRUN, *training(data, out, "--epochs", 4000, "--rank-timeout", timeout))
    job = subprocess.Popen(line, env=ACTIVATED, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        limit = time.monotonic() + PATIENCE
        while not any(event["step"] >= step for event in events(out)):
            assert time.monotonic() < limit, "training never began"
            assert job.poll() is None, job.communicate()[0]
            time.sleep(0.1)
        run(LAB, "cut", "host2")
        began = time.monotonic()
        output, _ = job.communicate(timeout=PATIENCE)
        assert job.returncode != 0, output
        assert f"rank 1 on host2 was not heard of for {timeout} s" in output, output
        while left := processes() - before:
            assert time.monotonic() < began + PATIENCE, [_command(pid) for pid in left]
            time.sleep(0.2)
        return time.monotonic() - began
    finally:
        job.kill()
        run(LAB, "mend", "host2")
