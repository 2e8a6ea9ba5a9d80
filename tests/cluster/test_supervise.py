"""The supervisor on two hosts: one is cut off, and the run goes on without it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cluster.hosts import BIN, HOROVODRUN, LAB, PATIENCE, ROOT, events, on_host1, run, training, two_hosts
from tests.synthetic import write_dataset

pytestmark = pytest.mark.cluster
EPOCHS = 20


def losses(out: Path) -> list[float]:
    return [event["loss"] for event in events(out) if event["event"] == "step"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cluster") / "data"
    write_dataset(folder)
    return folder


@pytest.fixture(scope="module")
def alone(data: Path, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    out = tmp_path_factory.mktemp("alone") / "run"
    done = run(*training(data, out, "--epochs", EPOCHS))
    assert done.returncode == 0, done.stdout + done.stderr
    return losses(out)


def test_the_run_goes_on_without_a_host_that_is_cut_off(data, alone, tmp_path):
    out = tmp_path / "run"
    train = training(data, out, "--epochs", EPOCHS, "--checkpoint-every", 5, "--rank-timeout", 4)
    line = on_host1(sys.executable, "-m", "engine.supervise", "--max-restarts", 3, "--", *HOROVODRUN, *train)
    with two_hosts() as missing:
        if missing:
            pytest.skip(f"no test hosts: {missing}")
        path = f"{BIN}:{os.environ['PATH']}"  # where horovodrun looks for mpirun
        supervisor = subprocess.Popen(
            line,
            env=os.environ | {"PATH": path},
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            limit = time.monotonic() + PATIENCE
            while not any(event["step"] >= 20 for event in events(out)):
                assert time.monotonic() < limit, "training never began"
                assert supervisor.poll() is None, supervisor.communicate()[0]
                time.sleep(0.05)
            run(LAB, "cut", "host2")
            output, _ = supervisor.communicate(timeout=2 * PATIENCE)
        finally:
            supervisor.kill()
    assert supervisor.returncode == 0, output
    assert "no answer from host2; without it: " in output
    assert "engine.supervise: finished after 1 restart\n" in output
    starts = [(event["ranks"], event["step"]) for event in events(out) if event["event"] == "start"]
    assert [ranks for ranks, _ in starts] == [2, 1]
    assert starts[1][1] >= 15
    found = losses(out)
    assert len(found) == len(alone)
    assert all(abs(a - b) <= 1e-10 * abs(b) for a, b in zip(found, alone, strict=True))
