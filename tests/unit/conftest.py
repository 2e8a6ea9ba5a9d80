"""A small dataset to be damaged: a copy of its own for every test."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.synthetic import write_dataset


@pytest.fixture(scope="session")
def made(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "data"
    write_dataset(folder)
    return folder


@pytest.fixture
def folder(made, tmp_path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "data"))
