"""mrjob's runners for Spark, Hadoop and EMR: where a job reads and writes there, and which Python runs its tasks.

Everything else about a cluster is mrjob's to read: from mrjob.conf.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mrjob.emr import EMRJobRunner
from mrjob.hadoop import HadoopJobRunner
from mrjob.spark.runner import SparkMRJobRunner

from mr.configuration import read_configuration
from mr.errors import UsageError
from mr.job import Runner

HADOOP_CONF = {
    # Output counts when its task was committed, once, and _SUCCESS comes last of all; version 2 of the algorithm lets
    # a failed attempt leave files behind.
    "mapreduce.fileoutputcommitter.algorithm.version": "1",
    "mapreduce.fileoutputcommitter.marksuccessfuljobs": "true",
    # Records are fetched as they are.
    "mapreduce.output.fileoutputformat.compress": "false",
}
SPARK_CONF = {f"spark.hadoop.{name}": value for name, value in HADOOP_CONF.items()}
LOCAL_SPARK_CONF = {
    "spark.driver.host": "127.0.0.1",
    "spark.driver.bindAddress": "127.0.0.1",
    "spark.ui.enabled": "false",
}


class _Placed:
    """What the driver asks of a runner beyond mrjob's own interface. mrjob 0.7.4 is its last release."""

    _output_dir: str
    _input_paths: list[str]

    @property
    def folder(self) -> str:
        """Of this job alone: URI or path, known before the job runs; its output stands in `output` there."""
        return self._output_dir.rstrip("/").rpartition("/")[0]

    def take_input(self, folder: str) -> None:
        """Read all files of a folder; one argument, because a command line with thousands would be too long."""
        self._input_paths = [folder]

    def _default_python_bin(self, local: bool = False) -> list[str]:
        # The workers' Python must have this project. By default every host has it at the same path, as for training.
        return [sys.executable]


class SparkRunner(_Placed, SparkMRJobRunner):
    """Spark: local[N], standalone, YARN."""


class HadoopRunner(_Placed, HadoopJobRunner):
    """Hadoop's MapReduce, by its streaming jar."""


class EmrRunner(_Placed, EMRJobRunner):
    """MapReduce on EMR."""

    def _default_python_bin(self, local: bool = False) -> list[str]:
        return ["python3.11"]


CLASSES: dict[str, Any] = {"spark": SparkRunner, "hadoop": HadoopRunner, "emr": EmrRunner}


def runner_arguments(runner: Runner, scratch: Path) -> list[str]:
    """mrjob's options for a job on a cluster, or on local Spark.

    Args:
        runner: Spark, Hadoop or EMR.
        scratch: a local folder.

    Raises:
        UsageError: mrjob.conf cannot be read, or something is not installed here.
    """
    found = read_configuration(runner.name, runner.conf)
    _check_installed(runner.name, found)
    arguments = ["-r", runner.name, "--local-tmp-dir", str(scratch)]
    arguments += ["--no-cat-output", "--no-check-input-paths", "--no-bootstrap-mrjob"]
    # The output is fetched after the runner has cleaned up; its folder is removed by the driver.
    arguments += ["--cleanup", "LOCAL_TMP", "--cleanup-on-failure", "LOCAL_TMP,JOB"]
    if runner.conf is not None:
        arguments += ["--conf-path", str(runner.conf)]
    job_conf = HADOOP_CONF
    if runner.name == "spark":
        master = runner.spark_master or found.get("spark_master") or f"local[{runner.cores}]"
        arguments += ["--spark-master", master]
        job_conf = SPARK_CONF
        if is_local(master):
            arguments += ["--spark-tmp-dir", str(scratch / "spark")]
            job_conf = SPARK_CONF | LOCAL_SPARK_CONF
    for name, value in job_conf.items():
        arguments += ["-D", f"{name}={value}"]
    return arguments


def is_local(spark_master: str) -> bool:
    """Whether Spark runs in a process of this machine, with its paths."""
    return spark_master.partition("[")[0] == "local"


def _check_installed(runner: str, found: dict[str, Any]) -> None:
    if runner == "emr":
        _check_boto3("-r emr")
        return
    if runner == "spark" and not (found.get("spark_submit_bin") or os.environ.get("SPARK_HOME")):
        try:
            import pyspark  # noqa: F401
        except ImportError:
            if not shutil.which("spark-submit"):
                raise UsageError(
                    "-r spark: there is no Spark here; install the extra: pip install 'uneven-engine[spark]', "
                    "or set SPARK_HOME, or spark_submit_bin in mrjob.conf"
                ) from None
    if runner == "hadoop":
        _check_hadoop(found.get("hadoop_bin"))
    java = Path(os.environ["JAVA_HOME"], "bin/java") if os.environ.get("JAVA_HOME") else shutil.which("java")
    if not java or not os.access(java, os.X_OK):
        where = f"in JAVA_HOME ({os.environ['JAVA_HOME']})" if os.environ.get("JAVA_HOME") else "on PATH"
        raise UsageError(f"-r {runner}: no java {where}, and nothing runs without it; install a JRE (17 was tried)")


def _check_boto3(option: str) -> None:
    try:
        import boto3  # noqa: F401
    except ImportError:
        raise UsageError(
            f"{option}: boto3 is not installed; install the extra: pip install 'uneven-engine[emr]'"
        ) from None


def _check_hadoop(binary: str | Sequence[str] | None) -> None:
    from mrjob.fs.hadoop import HadoopFilesystem

    command = binary or HadoopFilesystem().get_hadoop_bin()
    first = command.split()[0] if isinstance(command, str) else command[0]
    if not shutil.which(first):
        raise UsageError(
            f"the command {first} is not here, and HDFS and MapReduce are reached by it alone; "
            "set HADOOP_HOME, or hadoop_bin in mrjob.conf"
        )
