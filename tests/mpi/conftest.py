"""Tests that run on every rank at once: the same tests under mpirun with 1, 2, 3 and 4 ranks (make mpi)."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import train

import engine
from tests.synthetic import write_dataset


@pytest.fixture(scope="session")
def session() -> engine.Session:
    return engine.init(device="cpu", threads=1)


@pytest.fixture(scope="session")
def dataset(session: engine.Session) -> Iterator[Path]:
    """A small dataset that all ranks see."""
    with tempfile.TemporaryDirectory() as own:
        folder = Path(session.comm.bcast(own, root=0)) / "data"
        if session.root:
            write_dataset(folder)
        session.comm.Barrier()
        yield folder
        session.comm.Barrier()


@pytest.fixture(scope="session")
def undisturbed(session, dataset):
    """Losses of the reference in two epochs, with Adam."""
    return train(dataset, session, "adam", 2, balance="off", exchange="dense")[0]


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    """A rank whose test fails would leave the others waiting in the next collective: it ends them all."""
    outcome = yield
    report = outcome.get_result()
    if report.failed:
        print(report.longreprtext, flush=True)
        from mpi4py import MPI

        if MPI.Is_initialized() and MPI.COMM_WORLD.size > 1:
            MPI.COMM_WORLD.Abort(1)
