"""Training over a real network, between two of the lab's hosts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.hosts import (
    HOROVODRUN,
    MPIRUN,
    cut_while_training,
    events,
    on_host1,
    run,
    training,
    two_hosts,
)
from tests.synthetic import write_dataset

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def hosts() -> Iterator[None]:
    with two_hosts() as missing:
        if missing:
            pytest.skip(f"no test hosts: {missing}")
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cluster") / "data"
    write_dataset(folder)
    return folder


def losses(out: Path) -> list[float]:
    return [float(event["loss"]) for event in events(out) if event["event"] == "step"]


@pytest.fixture(scope="module")
def alone(data: Path, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    out = tmp_path_factory.mktemp("alone") / "run"
    done = run(*training(data, out))
    assert done.returncode == 0, done.stdout + done.stderr
    return losses(out)


@pytest.mark.parametrize("launcher", [HOROVODRUN, MPIRUN], ids=["horovodrun", "mpirun"])
def test_two_hosts_follow_the_trajectory_of_one_rank(hosts, data, alone, launcher, tmp_path):
    out = tmp_path / "run"
    done = run(*on_host1(*launcher, *training(data, out)))
    assert done.returncode == 0, done.stdout + done.stderr
    assert next(event["ranks"] for event in events(out) if event["event"] == "start") == 2
    found = losses(out)
    assert len(found) == len(alone) >= 20
    assert all(abs(a - b) <= 1e-10 * abs(b) for a, b in zip(found, alone, strict=True))


def test_behind_a_cut_cable_all_end_in_time(hosts, data, tmp_path):
    """On both sides; the launcher and its daemon on the other host are given longer than the ranks."""
    cut_while_training(data, tmp_path / "run", step=10)
