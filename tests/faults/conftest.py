"""A dataset, and a run on it that nothing disturbed, for all tests of faults."""

from __future__ import annotations

from pathlib import Path

import pytest
from jobs import command, options, run

from tests.synthetic import write_dataset


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("faults") / "data"
    write_dataset(folder)
    return folder


@pytest.fixture(scope="session")
def undisturbed(data, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    done = run(*command(3, *options(data, out)))
    assert done.returncode == 0, done.stdout + done.stderr
    return out
