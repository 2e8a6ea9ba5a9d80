"""What the three jobs have in common, and how the driver runs one."""

from __future__ import annotations

import glob
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

from mrjob.job import MRJob

from mr.errors import RunError
from mr.forking import ForkingRunner, InlineRunner
from mr.meter import metered
from mr.records import NUMBER
from mr.settings import Settings

Pairs = Iterator[tuple[bytes, bytes]]
RUNNERS_HERE = ("inline", "local")
RUNNERS = (*RUNNERS_HERE, "spark", "hadoop", "emr")


class RecordProtocol:
    """Records as lines: key, tab, value. As mrjob's BytesProtocol, but a record always has both."""

    def read(self, line: bytes) -> tuple[bytes, bytes]:
        """A line without its line end."""
        key, _, value = line.partition(b"\t")
        return key, value

    def write(self, key: bytes, value: bytes) -> bytes:
        """The reverse."""
        return b"%s\t%s" % (key, value)


class ReviewJob(MRJob):
    """A job over byte records, with the settings at hand in its tasks.

    The protocols are named: mrjob's default one depends on what is installed on the machine of each task. Numbers are
    records and not mrjob counters, which count an attempt that was run twice twice.
    """

    INPUT_PROTOCOL = RecordProtocol
    INTERNAL_PROTOCOL = RecordProtocol
    OUTPUT_PROTOCOL = RecordProtocol
    STAYS_REMOTE: ClassVar[bool] = False
    """whether other jobs alone read the output: a cluster keeps it then"""
    MAPPERS_A_CORE: ClassVar[int] = 2
    """tasks that the local runner cuts the input into; more even out what differs, and each counts words of its own"""
    REDUCER_ONLY_SORTS: ClassVar[bool] = False
    """whether the reducer hands on what it gets: the local runner then hands on the lines as they are"""
    SORTED: ClassVar[bool] = True
    """whether each part of the output must be sorted when it is read; Spark does not sort"""

    def configure_args(self) -> None:
        """Add --settings, a file that goes to every task."""
        super().configure_args()
        self.add_file_arg("--settings", help="settings of the run, written by the driver")

    def mapper_init(self) -> None:
        """Read the settings and start counting."""
        self.settings = Settings.read(Path(self.options.settings))
        self.numbers: Counter[str] = Counter()

    def reducer_init(self) -> None:
        """Read the settings and start counting."""
        ReviewJob.mapper_init(self)

    def run_mapper(self, step_num: int = 0) -> None:
        """As MRJob has it, with fewer calls a record."""
        read, _ = self.pick_protocols(step_num, "mapper")
        self._write(self.map_pairs(self._read(read), step_num))

    def run_reducer(self, step_num: int = 0) -> None:
        """As MRJob has it, with fewer calls a record."""
        read, _ = self.pick_protocols(step_num, "reducer")
        self._write(self.reduce_pairs(self._read(read), step_num))

    def _read(self, read: Any) -> Any:
        return (read(line.rstrip(b"\r\n")) for line in self._read_input())

    def _write(self, pairs: Pairs) -> None:
        self.stdout.writelines(b"%s\t%s\n" % pair for pair in pairs)

    @property
    def stdin(self) -> Any:
        """The input of a task, counted for the driver where it watches."""
        task = self.options.run_mapper or self.options.run_reducer
        return metered(super().stdin, self.options.run_reducer) if task else super().stdin

    def emit_numbers(self) -> Pairs:
        """The task's numbers, as records."""
        for name, count in self.numbers.items():
            yield NUMBER + name.encode(), b"%d" % count

    def _runner_class(self) -> Any:
        if self.options.runner in RUNNERS_HERE:
            return ForkingRunner if self.options.runner == "local" else InlineRunner
        return import_module("mr.runners").CLASSES[self.options.runner]


def run_job(
    job_class: type[ReviewJob],
    inputs: Sequence[Path],
    output: Path,
    *,
    runner: str,
    cores: int,
    scratch: Path,
    files: dict[str, Path],
    conf: Path | None = None,
    spark_master: str | None = None,
    note: Callable[[str], None] = lambda text: None,
) -> None:
    """Run a job to its end.

    Args:
        job_class: one of the jobs.
        inputs: files; what the output folder of a job before it holds.
        output: a new folder for the parts of the output. On a cluster, of a job whose output STAYS_REMOTE, it holds one
            file that tells where they are.
        runner: one of RUNNERS.
        cores: processes at a time, where the job runs on this machine.
        scratch: an empty folder for mrjob's own files.
        files: option name and path of the files that the tasks need.
        conf: an mrjob.conf; None: none for inline and local, and mrjob's usual places for the others.
        spark_master: None: as in mrjob.conf, or else local Spark.
        note: called with a line on what was moved to and from a cluster.

    Raises:
        RunError: a task failed; the message ends with the task's last words.
        UsageError: the runner is not installed here, or mrjob.conf is not usable.
    """
    if runner in RUNNERS_HERE:
        _run_here(job_class, inputs, output, runner, cores, scratch, files, conf)
        return
    import_module("mr.remote").run_remote(
        job_class,
        inputs,
        output,
        runner=runner,
        cores=cores,
        scratch=scratch,
        files=files,
        conf=conf,
        spark_master=spark_master,
        note=note,
    )


def check_runner(work: Path, *, runner: str, conf: Path | None = None, spark_master: str | None = None) -> None:
    """Check, before any work, that the runner can run here.

    Args:
        work: the folder in which jobs will have their scratch folders.
        runner: see run_job.
        conf: see run_job.
        spark_master: see run_job.

    Raises:
        UsageError: something is not installed, mrjob.conf is not usable, or the folder's path is not.
    """
    if runner not in RUNNERS_HERE:
        import_module("mr.remote").check(work, runner=runner, conf=conf, spark_master=spark_master)


def output_stands(output: Path, *, runner: str, conf: Path | None = None) -> bool:
    """Whether the output of a job is still there, on the cluster where it stayed there.

    Args:
        output: folder of a job that ended.
        runner: see run_job.
        conf: see run_job.
    """
    if not any(output.glob("part-*")):
        return False
    return runner in RUNNERS_HERE or bool(import_module("mr.remote").stands(output, runner=runner, conf=conf))


def clear_cluster(work: Path, *, runner: str, conf: Path | None = None) -> None:
    """Remove what jobs left on a cluster for each other; what cannot be removed is told on standard error.

    Args:
        work: the folder with the jobs' output folders.
        runner: see run_job.
        conf: see run_job.
    """
    if runner not in RUNNERS_HERE:
        import_module("mr.remote").discard(work, runner=runner, conf=conf)


def _run_here(
    job_class: type[ReviewJob],
    inputs: Sequence[Path],
    output: Path,
    runner: str,
    cores: int,
    scratch: Path,
    files: dict[str, Path],
    conf: Path | None,
) -> None:
    silence_mrjob()
    args = ["-r", runner, "--no-cat-output", "--output-dir", str(output), "--local-tmp-dir", str(scratch)]
    args += ["--no-conf"] if conf is None else ["--conf-path", str(conf)]
    if runner == "local":
        args += ["--no-bootstrap-mrjob", "--num-cores", str(cores)]
    for name, path in files.items():
        args += [f"--{name}", str(path)]
    job = job_class([*args, *(glob.escape(str(path)) for path in inputs)])
    try:
        with job.make_runner() as run:
            run.job_class = job_class
            try:
                run.run()
            except Exception as error:
                name = job_class.__name__
                raise RunError(f"{name} failed: {_last_words(scratch) or error}; nothing was written") from error
    finally:
        logging.getLogger("mrjob").handlers.clear()


def silence_mrjob() -> None:
    """Let mrjob say nothing: its warnings (no configuration, no Hadoop) mean nothing here, failures are RunErrors."""
    logger = logging.getLogger("mrjob")
    logger.handlers[:] = [logging.NullHandler()]
    logger.propagate = False


def _last_words(scratch: Path) -> str:
    """The last line that the first failed task wrote."""
    for path in sorted(scratch.rglob("stderr")):
        lines = path.read_text("utf-8", "replace").split("\n") if path.is_file() else []
        words = [line.strip() for line in lines if line.strip() and not line.startswith("reporter:")]
        if words:
            return words[-1]
    return ""
