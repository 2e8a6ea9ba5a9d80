"""One dataset, byte for byte, whatever runs the jobs; also when every first attempt of a task dies."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest

from mr import sample
from tests.engines.runs import DATA, ROOT, ROWS, call, errors, files, made

KILLING = Path(__file__).parent / "killing"
JOBS = 3
HOSTILE = [
    b"[1, 2]\n", b'{"reviewText": "cut\n', b"\xff\xfe\n", b"\n", b'{"reviewText": "tab\tinside", "overall": 3}\n',
    b'{"reviewText": "no rating"}\n', b'{"reviewText": "\\u00e9 \xf0\x9f\x91\x8d", "overall": 4}\r\n',
] * 20  # fmt: skip


@pytest.fixture(scope="session", params=["generated", "hostile", "real"])
def reviews(request, tmp_path_factory) -> list[str]:
    """Input files of three kinds."""
    folder = tmp_path_factory.mktemp("reviews")
    if request.param == "real":
        if not DATA.is_dir():
            pytest.skip(f"the real reviews are not here: {DATA}")
        return [str(path) for path in sorted(DATA.glob("*.json*"))]
    if request.param == "generated":
        sample.write(folder / "generated.jsonl.gz", ROWS, 5)
        return [str(folder / "generated.jsonl.gz")]
    lines = list(sample.lines(3000, 8))
    (folder / "a.jsonl").write_bytes(b"".join(lines[:2000] + HOSTILE))
    (folder / "b.jsonl").write_bytes(b"".join(lines[1000:]))
    return [str(folder / "*.jsonl")]


@pytest.fixture(scope="session")
def expected(reviews, tmp_path_factory) -> dict[str, bytes]:
    """The dataset as one process makes it."""
    out = tmp_path_factory.mktemp("expected") / "data"
    manifest = made(out, *reviews, "-r", "inline", "--max-malformed", 50)
    print(f"\n{manifest['counts']['lines']:,} lines, {manifest['counts']['kept']:,} kept: digest {manifest['digest']}")
    return files(out)


@pytest.fixture
def same(reviews, expected, tmp_path):
    """Runs an engine on the reviews and compares everything that it makes."""

    def check(*arguments: object, environment: dict[str, str] | None = None) -> None:
        before = set(tmp_path.iterdir())
        made(tmp_path / "data", *reviews, "--max-malformed", 50, *arguments, environment=environment)
        assert files(tmp_path / "data") == expected
        assert set(tmp_path.iterdir()) - before == {tmp_path / "data"}, "temporary files were left"

    return check


@pytest.mark.parametrize("cores", [1, 2, 4])
def test_local(same, cores):
    same("-r", "local", "--cores", cores)


def test_spark_on_this_machine(same):
    same("-r", "spark", "--cores", 2)


def test_spark_standalone_with_two_workers(same, master, conf, tmp_path):
    shared = tmp_path / "shared"
    shared.mkdir()
    same("-r", "spark", "--spark-master", master, "--conf-path", conf("spark", spark_tmp_dir=str(shared)))
    assert list(shared.iterdir()) == []


def test_hadoops_mapreduce(same, hadoop, conf):
    same("-r", "hadoop", "--conf-path", conf("hadoop", **hadoop.conf()), environment=hadoop.environment)
    assert list(hadoop.folder.glob("hdfs/*")) == []


def test_spark_with_every_first_attempt_killed(same, master, conf, tmp_path):
    (tmp_path / "shared").mkdir()
    deaths = tmp_path / "deaths"
    deaths.touch()
    environment = {"PYTHONPATH": f"{KILLING}:{ROOT}", "TESTS_DEATHS": str(deaths)}
    path = conf("spark", spark_tmp_dir=str(tmp_path / "shared"), cmdenv=environment)
    same("-r", "spark", "--spark-master", master, "--conf-path", path)
    told = Counter(line for line in deaths.read_text().splitlines())
    died = [line.split()[1:4] for line in told if line.startswith("died")]
    ended = [line.split()[1:4] for line in told if line.startswith("ended")]
    assert set(told.values()) == {1}, "a first attempt, or a task, ran twice"
    assert sorted(died) == sorted(ended), "every task died in its first attempt and ended in its second"
    assert Counter(kind for kind, _, _ in died).keys() == {"map", "reduce"}
    assert len(died) >= 2 * JOBS


@pytest.fixture
def small(tmp_path) -> Path:
    path = tmp_path / "small.jsonl"
    path.write_bytes(b"".join(sample.lines(500, 2)))
    return path


def test_a_death_that_hadoop_does_not_mend_leaves_nothing(small, hadoop, conf, tmp_path):
    """Hadoop's local job runner has one attempt a task: the job fails, and the next run is as if it had not been."""
    environment = {"PYTHONPATH": f"{KILLING}:{ROOT}", "TESTS_DEATHS": str(tmp_path / "deaths")}
    path = conf("hadoop", **hadoop.conf(cmdenv=environment))
    before = {*tmp_path.iterdir(), tmp_path / "deaths"}
    arguments = [small, "--out", tmp_path / "data", "-r", "hadoop", "--conf-path"]
    done = call(*arguments, path, environment=hadoop.environment | {"TMPDIR": str(tmp_path)})
    assert done.returncode == 1, done.stderr
    assert len(errors(done)) == 1
    assert "status 17" in done.stderr
    log = Path(re.search(r"\(its log: ([^)]*)\)", done.stderr)[1])
    assert "Streaming" in log.read_text()
    log.unlink()
    assert {path for path in tmp_path.iterdir() if path.suffix != ".work"} == before
    assert list(hadoop.folder.glob("hdfs/*")) == []
    path = conf("hadoop", **hadoop.conf())
    assert call(*arguments, path, environment=hadoop.environment).returncode == 0


@pytest.mark.parametrize("runner", ["spark", "hadoop"])
def test_workers_without_the_project_are_told_in_one_line(runner, small, request, conf, tmp_path):
    """Their Python is this one's, without the packages of its environment and without this checkout."""
    (tmp_path / "shared").mkdir()
    bare = tmp_path / "bare-python"
    python = os.path.realpath(sys.executable)
    # The checkout alone is taken out: the environment, and Spark's own packages in it, may lie below it.
    path = f'$(printf %s "$PYTHONPATH" | tr : "\\n" | grep -vxF "{ROOT}" | paste -sd :)'
    bare.write_text(f'#!/bin/sh\nPYTHONPATH="{path}" exec {python} "$@"\n')
    bare.chmod(0o755)
    environment, options = dict(os.environ), {"spark_tmp_dir": str(tmp_path / "shared")}
    if runner == "hadoop":
        hadoop = request.getfixturevalue("hadoop")
        environment, options = hadoop.environment, hadoop.conf()
    else:
        options["spark_master"] = request.getfixturevalue("master")
    path = conf(runner, task_python_bin=str(bare), **options)
    before = set(tmp_path.iterdir())
    environment |= {"TMPDIR": str(tmp_path)}
    done = call(small, "--out", tmp_path / "data", "-r", runner, "--conf-path", path, environment=environment)
    assert done.returncode == 1, done.stderr
    assert len(errors(done)) == 1
    assert "has no package mr" in done.stderr
    assert "python_bin" in done.stderr
    for log in tmp_path.glob("mr-*.log"):
        log.unlink()
    # What was read of the input is kept for the next call.
    assert {path for path in tmp_path.iterdir() if path.suffix != ".work"} == before


def test_a_terminated_run_takes_its_spark_along(small, tmp_path):
    """No JVM goes on, nothing is left but what was done."""
    arguments = [str(small), "--out", str(tmp_path / "data"), "-r", "spark", "--cores", "2"]
    running = subprocess.Popen(
        [sys.executable, "-m", "mr", *arguments], stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "MRJOB_CONF": os.devnull},
    )  # fmt: skip
    started: list[psutil.Process] = []
    while not any("pyspark.daemon" in word for process in started for word in command_of(process)):
        assert running.poll() is None, running.stderr.read()
        started = psutil.Process(running.pid).children(recursive=True)
        time.sleep(0.02)
    running.terminate()
    told = running.communicate(timeout=120)[1]
    assert running.returncode == 128 + signal.SIGTERM, told
    assert "Traceback" not in told
    _, alive = psutil.wait_procs(started, timeout=30)
    assert alive == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data.work", small.name]


def command_of(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.NoSuchProcess:
        return []
