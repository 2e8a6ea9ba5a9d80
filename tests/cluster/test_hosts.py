"""Training over a real network: two of the lab's hosts, namespaces with sshd, hostname and /dev/shm of their own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.environment import wheel_mpi_prefix
from tests.synthetic import write_dataset

ROOT = Path(__file__).resolve().parents[2]
LAB = Path(__file__).with_name("lab")
TOOLS = ("ip", "tc", "unshare", "ssh-keygen", "ssh")
BIN = Path(sys.executable).parent
HOROVODRUN = [BIN / "horovodrun", "-np", 2, "-H", "host1:1,host2:1"]
MPIRUN = [BIN / "mpirun", "-n", 2, "-H", "host1:1,host2:1", "--bind-to", "none", "-x", "OPAL_PREFIX", "-x", "PATH"]

pytestmark = pytest.mark.cluster


def missing() -> str:
    """Why this machine cannot have the lab's hosts; empty where it can."""
    if os.geteuid() != 0:
        return "root is needed for network namespaces"
    lacking = [tool for tool in TOOLS if shutil.which(tool) is None]
    if not Path("/usr/sbin/sshd").exists():
        lacking.append("sshd (openssh-server)")
    return f"missing on this machine: {', '.join(lacking)}" if lacking else ""


def run(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(word) for word in words],
        # horovodrun looks for mpirun on the path, as in an environment that was activated
        env=os.environ | {"PATH": f"{BIN}:{os.environ['PATH']}"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.fixture(scope="module")
def hosts() -> Iterator[None]:
    if why := missing():
        pytest.skip(f"no test hosts: {why}")
    up = run(LAB, "up", 2, "1gbit")
    if up.returncode and "already up" in up.stderr:
        pytest.skip("no test hosts: the lab is in use; end it with tests/cluster/lab down")
    try:
        if up.returncode:
            pytest.skip(f"no test hosts: {up.stderr.strip()}")
        yield
    finally:
        run(LAB, "down")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cluster") / "data"
    write_dataset(folder)
    return folder


def options(data: Path, out: Path) -> list[object]:
    exact = ["--precision", "float64", "--dropout", 0, "--balance", "off", "--log-every", 1]
    size = ["--epochs", 1, "--batch-size", 48, "--hidden-size", 8, "--embedding-size", 8]
    return [sys.executable, "-m", "engine.train", "--data", data, "--out", out, "--device", "cpu", *exact, *size]


def events(out: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def losses(out: Path) -> list[float]:
    return [float(str(event["loss"])) for event in events(out) if event["event"] == "step"]


@pytest.fixture(scope="module")
def alone(data: Path, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    out = tmp_path_factory.mktemp("alone") / "run"
    done = run(*options(data, out))
    assert done.returncode == 0, done.stdout + done.stderr
    return losses(out)


@pytest.mark.parametrize("launcher", [HOROVODRUN, MPIRUN], ids=["horovodrun", "mpirun"])
def test_two_hosts_follow_the_trajectory_of_one_rank(hosts, data, alone, launcher, tmp_path):
    out = tmp_path / "run"
    prefix = wheel_mpi_prefix()
    root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    own = root | ({"OPAL_PREFIX": str(prefix)} if prefix else {})
    words = [f"{name}={value}" for name, value in own.items()]
    done = run(LAB, "run", "host1", "env", *words, *launcher, *options(data, out))
    assert done.returncode == 0, done.stdout + done.stderr
    assert next(event["ranks"] for event in events(out) if event["event"] == "start") == 2
    found = losses(out)
    assert len(found) == len(alone) >= 20
    assert all(abs(a - b) <= 1e-10 * abs(b) for a, b in zip(found, alone, strict=True))
