"""The local runner: how many tasks and files a job makes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mr import sample
from mr.cli import main
from mr.forking import LEAST_MAPPER_BYTES, LEAST_PART_BYTES, ForkingRunner, InlineRunner
from native.format import read_manifest


@pytest.fixture
def jobs(monkeypatch) -> list[dict[str, Any]]:
    """Tasks, and files between them, of each job that is run from now on."""
    found: list[dict[str, Any]] = []
    run_reducers = ForkingRunner._run_reducers

    def look(self, step_num, count):
        files = [path for path in Path(self._get_local_tmp_dir()).rglob("output-*") if path.is_file()]
        found.append({"mappers": self._mappers, "reducers": count, "files": len(files)})
        run_reducers(self, step_num, count)

    monkeypatch.setattr(ForkingRunner, "_run_reducers", look)
    return found


def run(folder: Path, data: bytes, *arguments: str) -> str:
    path = folder / "x.jsonl"
    path.write_bytes(data)
    assert main([str(path), "--out", str(folder / "out"), *arguments]) == 0
    return read_manifest(folder / "out")["digest"]


def test_many_cores_do_not_make_many_tasks_of_little_input(tmp_path, jobs):
    data = b"".join(json.dumps({"text": f"number {number}", "rating": 5}).encode() + b"\n" for number in range(60))
    run(tmp_path, data, "-r", "local", "--cores", "100")
    assert jobs == [{"mappers": 1, "reducers": 1, "files": 1}] * 3


@pytest.mark.parametrize("cores", [1, 3, 30, 4096])
def test_tasks_and_files_grow_with_the_input_and_not_with_the_square_of_the_cores(tmp_path, jobs, monkeypatch, cores):
    monkeypatch.setattr(ForkingRunner, "_run_multiple", InlineRunner._run_multiple)  # not 4096 processes
    data = b"".join(sample.lines(4000, 1))
    run(tmp_path, data, "-r", "local", "--cores", str(cores))
    size = 2 * len(data)  # what a job hands on is never twice as large
    for job, mappers_a_core in zip(jobs, (2, 1, 2), strict=True):
        assert 1 <= job["mappers"] <= min(mappers_a_core * cores, size // LEAST_MAPPER_BYTES)
        assert 1 <= job["reducers"] <= 2 * cores
        assert job["files"] == job["mappers"] * job["reducers"] <= size // LEAST_PART_BYTES
    assert cores == 1 or max(job["mappers"] for job in jobs) > 2
    assert cores == 1 or max(job["reducers"] for job in jobs) > 2


def test_enough_input_keeps_all_cores_busy(tmp_path, jobs):
    run(tmp_path, b"".join(sample.lines(4000, 1)), "-r", "local", "--cores", "2")
    assert jobs[0] == {"mappers": 4, "reducers": 4, "files": 16}
    assert InlineRunner._default_opts()["num_cores"] == 1
