"""Runs a job on Spark, Hadoop or EMR: input up, job, output down.

    local files --put--> <job's folder>/input --job--> <job's folder>/output --get--> local part-*
                                                            |--or stays, and a file PLACE tells where

Output comes by the engine's own committer: what a failed or a second attempt of a task wrote is not in it, and _SUCCESS
is the last thing to appear. Only then, and only when number and size of the parts agree, does the local folder appear.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from mr.causes import cause_of_failure
from mr.errors import RunError, UsageError
from mr.job import JobRun, ReviewJob, Runner
from mr.runners import is_local, runner_arguments
from mr.sorting import sort_lines
from mr.stores import Store, join, store_of

PLACE = "part-elsewhere"
"""a job's output folder holds this file alone where its parts stayed on the cluster"""
_SUCCESS = "_SUCCESS"
_END_SECONDS = 30
"""that a stopped spark-submit or hadoop gets to end by itself"""
# Hadoop takes these for patterns, or for more than one path.
_NO_PLAIN_PATH = re.compile(r"[^\w./+=@~-]", re.ASCII)


def run_remote(run: JobRun) -> None:
    """Run a job to its end; see mr.job.run_job."""
    arguments = runner_arguments(run.runner, run.scratch) + run.file_arguments
    log = run.scratch / "engine.log"
    with _logged(log), _cluster(run.job_class, arguments) as cluster:
        try:
            store = store_of(cluster.fs, cluster.folder)
            with _removed_on_failure(store, cluster.folder), _children_end():
                cluster.take_input(_put_input(run, cluster, store))
                cluster.run()
                _take_output(run, cluster, store)
        except (UsageError, RunError):
            raise
        except Exception as error:
            logging.getLogger("mrjob").info("", exc_info=error)
            raise RunError(_failure(run, cluster, error, log)) from error


def check(work: Path, runner: Runner) -> None:
    """Check that jobs can run; see mr.job.check_runner."""
    if _NO_PLAIN_PATH.search(str(work)):
        raise UsageError(
            f"{work.parent}: Hadoop's libraries read characters of this path as patterns; choose another --out, "
            "or set TMPDIR, to a path of letters, digits and . _ - /"
        )
    runner_arguments(runner, work)


def stands(output: Path, runner: Runner) -> bool:
    """Whether an output that stayed on the cluster is still there; see mr.job.output_stands."""
    if not (output / PLACE).exists():
        return True
    there = json.loads((output / PLACE).read_text())["output"]
    with tempfile.TemporaryDirectory(prefix="mr-stands-") as scratch:
        store = store_of(open_filesystem(runner, Path(scratch)), there)
        return bool(store.sizes(join(there, _SUCCESS)))


def discard(work: Path, runner: Runner) -> None:
    """Remove what jobs left on the cluster, and the folders that told of it; see mr.job.clear_cluster."""
    for place in work.glob(f"*/{PLACE}"):
        folder = json.loads(place.read_text())["folder"]
        try:
            with tempfile.TemporaryDirectory(prefix="mr-discard-") as scratch:
                store_of(open_filesystem(runner, Path(scratch)), folder).remove(folder)
        except (OSError, UsageError) as error:
            _tell_left(folder, error)
            continue
        shutil.rmtree(place.parent)


def open_filesystem(runner: Runner, scratch: Path) -> Any:
    """mrjob's filesystem of a runner, with the credentials, endpoints and binaries of its mrjob.conf.

    Args:
        runner: whose section of mrjob.conf it is.
        scratch: a local folder.

    Raises:
        UsageError: mrjob.conf cannot be read.
    """
    arguments = ["-r", runner.name, "--local-tmp-dir", str(scratch)]
    arguments += ["--conf-path", str(runner.conf)] if runner.conf else []
    with _logged(scratch / "filesystem.log"), _cluster(ReviewJob, arguments) as cluster:
        return cluster.fs


@contextmanager
def _cluster(job_class: type[ReviewJob], arguments: Sequence[str]) -> Iterator[Any]:
    """mrjob's runner of a job."""
    try:
        cluster = job_class([*arguments]).make_runner()
    except Exception as error:
        raise UsageError(f"mrjob does not take its options: {error}; correct mrjob.conf") from error
    with cluster:
        yield cluster


def _put_input(run: JobRun, cluster: Any, store: Store) -> str:
    """Where the job reads: one folder."""
    if [path.name for path in run.inputs] == [PLACE]:
        return str(json.loads(run.inputs[0].read_text())["output"])
    if _runs_here(cluster):
        folder = run.scratch / "input"
        folder.mkdir()
        for path in run.inputs:
            (folder / path.name).symlink_to(path.absolute())
        return str(folder)
    there = join(cluster.folder, "input")
    store.put(run.inputs, there)
    size = sum(path.stat().st_size for path in run.inputs)
    run.note(f"{size / 1e6:,.1f} MB put into {there}")
    return there


def _take_output(run: JobRun, cluster: Any, store: Store) -> None:
    there = join(cluster.folder, "output")
    found = store.sizes(join(there, "*"))
    if join(there, _SUCCESS) not in found:
        raise RunError(f"{there}: no {_SUCCESS}: the output is not whole; nothing was written: see the cluster's log")
    parts = {path: size for path, size in found.items() if path.rpartition("/")[2].startswith("part-")}
    arriving = Path(tempfile.mkdtemp(prefix="fetched-", dir=run.scratch))
    if run.job_class.STAYS_REMOTE and not _runs_here(cluster):
        store.remove(join(cluster.folder, "input"))
        (arriving / PLACE).write_text(json.dumps({"folder": cluster.folder, "output": there}))
        run.note(f"{sum(parts.values()) / 1e6:,.1f} MB in {len(parts)} parts stay in {there}")
    else:
        store.get(parts, arriving)
        _check(arriving, parts)
        if run.runner.name == "spark" and run.job_class.SORTED:
            _sort(list(arriving.iterdir()), run.runner.cores, run.scratch)
        store.remove(cluster.folder)
        if not _runs_here(cluster):
            run.note(f"{sum(parts.values()) / 1e6:,.1f} MB in {len(parts)} parts fetched from {there}")
    arriving.chmod(0o755)
    arriving.rename(run.output)


def _check(folder: Path, parts: dict[str, int]) -> None:
    came = {path.name: path.stat().st_size for path in folder.iterdir()}
    announced = {path.rpartition("/")[2]: size for path, size in parts.items()}
    if came != announced:
        differ = sorted(name for name in came.keys() | announced.keys() if came.get(name) != announced.get(name))
        raise RunError(
            f"{len(differ)} of {len(parts)} parts did not arrive whole, {differ[0]} among them; nothing was written: "
            "run it again"
        )


def _sort(parts: Sequence[Path], cores: int, scratch: Path) -> None:
    """Sort each part: Spark groups keys without sorting them."""
    with ThreadPoolExecutor(cores) as pool:
        list(pool.map(lambda part: sort_lines([part], part, scratch), parts))


def _runs_here(cluster: Any) -> bool:
    return cluster.alias == "spark" and is_local(cluster._spark_master())


def _failure(run: JobRun, cluster: Any, error: Exception, log: Path) -> str:
    lines = log.read_text("utf-8", "replace").splitlines()
    handle, kept = tempfile.mkstemp(prefix=f"mr-{run.runner.name}-", suffix=".log")
    os.close(handle)
    shutil.copyfile(log, kept)
    cause = cause_of_failure(lines, cluster._task_python_bin()) or str(error)
    return f"{run.job_class.__name__} failed on {run.runner.name}: {cause}; nothing was written (its log: {kept})"


@contextmanager
def _logged(path: Path) -> Iterator[None]:
    """Write down what mrjob tells, the engine's own words among it."""
    logger = logging.getLogger("mrjob")
    handler = logging.FileHandler(path, encoding="utf-8", errors="replace")
    handlers, level, logger.propagate = logger.handlers[:], logger.level, False
    logger.handlers[:] = [handler]
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.handlers[:] = handlers
        logger.setLevel(level)
        handler.close()


@contextmanager
def _removed_on_failure(store: Store, folder: str) -> Iterator[None]:
    """Leave nothing of a failed job behind; the failure itself is what is told."""
    try:
        yield
    except BaseException:
        try:
            store.remove(folder)
        except OSError as error:
            _tell_left(folder, error)
        raise


def _tell_left(folder: str, error: Exception) -> None:
    print(f"mr: {folder} could not be removed ({error}); remove it", file=sys.stderr)


@contextmanager
def _children_end() -> Iterator[None]:
    """After a failure, no spark-submit or hadoop goes on writing behind the driver's back."""
    before = set(psutil.Process().children())
    try:
        yield
    except BaseException:
        started = [child for child in psutil.Process().children() if child not in before]
        for child in started:
            child.terminate()
        _, alive = psutil.wait_procs(started, timeout=_END_SECONDS)
        for child in alive:
            child.kill()
        raise
