"""What the three jobs have in common, and how the driver runs one."""

from __future__ import annotations

import glob
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True, kw_only=True)
class Runner:
    """What runs the jobs of a call."""

    name: str
    """one of RUNNERS"""
    cores: int = 1
    """processes at a time, where the jobs run on this machine"""
    conf: Path | None = None
    """an mrjob.conf; None: none for inline and local, and mrjob's usual places for the others"""
    spark_master: str | None = None
    """None: as in mrjob.conf, or else local Spark"""

    @property
    def is_here(self) -> bool:
        """Whether tasks are processes of this machine that the driver forks, or the driver itself."""
        return self.name in RUNNERS_HERE


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


@dataclass(frozen=True, kw_only=True)
class JobRun:
    """A job, what runs it, and what it works on."""

    job_class: type[ReviewJob]
    runner: Runner
    inputs: Sequence[Path]
    """files; what the output folder of a job before it holds"""
    output: Path
    """a new folder for the parts of the output. On a cluster, of a job whose output STAYS_REMOTE, it holds one file
    that tells where they are"""
    scratch: Path
    """an empty folder for mrjob's own files"""
    files: Mapping[str, Path]
    """option name and path of the files that the tasks need"""
    note: Callable[[str], None] = lambda text: None
    """called with a line on what was moved to and from a cluster"""

    @property
    def file_arguments(self) -> list[str]:
        """The job's options that name its files."""
        return [word for name, path in self.files.items() for word in (f"--{name}", str(path))]


def run_job(run: JobRun) -> None:
    """Run a job to its end.

    Raises:
        RunError: a task failed; the message ends with the task's last words.
        UsageError: the runner is not installed here, or mrjob.conf is not usable.
    """
    if run.runner.is_here:
        _run_here(run)
    else:
        import_module("mr.remote").run_remote(run)


def check_runner(work: Path, runner: Runner) -> None:
    """Check, before any work, that the runner can run here.

    Args:
        work: the folder in which jobs will have their scratch folders.
        runner: to be checked.

    Raises:
        UsageError: something is not installed, mrjob.conf is not usable, or the folder's path is not.
    """
    if not runner.is_here:
        import_module("mr.remote").check(work, runner)


def output_stands(output: Path, runner: Runner) -> bool:
    """Whether the output of a job is still there, on the cluster where it stayed there.

    Args:
        output: folder of a job that ended.
        runner: that ran it.
    """
    if not any(output.glob("part-*")):
        return False
    return runner.is_here or bool(import_module("mr.remote").stands(output, runner))


def clear_cluster(work: Path, runner: Runner) -> None:
    """Remove what jobs left on a cluster for each other; what cannot be removed is told on standard error.

    Args:
        work: the folder with the jobs' output folders.
        runner: that ran them.
    """
    if not runner.is_here:
        import_module("mr.remote").discard(work, runner)


def _run_here(run: JobRun) -> None:
    silence_mrjob()
    runner = run.runner
    args = ["-r", runner.name, "--no-cat-output", "--output-dir", str(run.output), "--local-tmp-dir", str(run.scratch)]
    args += ["--no-conf"] if runner.conf is None else ["--conf-path", str(runner.conf)]
    if runner.name == "local":
        args += ["--no-bootstrap-mrjob", "--num-cores", str(runner.cores)]
    args += run.file_arguments
    job = run.job_class([*args, *(glob.escape(str(path)) for path in run.inputs)])
    try:
        with job.make_runner() as mrjob_runner:
            mrjob_runner.job_class = run.job_class
            try:
                mrjob_runner.run()
            except Exception as error:
                name = run.job_class.__name__
                raise RunError(f"{name} failed: {_last_words(run.scratch) or error}; nothing was written") from error
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
