"""Hadoop's own MapReduce on one machine, without a cluster: classes from pyspark's jars, and a streaming stand-in."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent / "hadoop"


@dataclass(frozen=True)
class Hadoop:
    """What mrjob's hadoop runner needs to be told."""

    binary: Path
    streaming: Path
    folder: Path
    """of its temporary files, and of what stands for HDFS"""
    environment: dict[str, str]

    def conf(self, **more: object) -> dict[str, object]:
        """The section for mrjob.conf."""
        return {
            "hadoop_bin": str(self.binary),
            "hadoop_streaming_jar": str(self.streaming),
            "hadoop_tmp_dir": f"file://{self.folder}/hdfs",
            "jobconf": {"mapreduce.job.reduces": 3},
            **more,
        }


def build_hadoop(folder: Path) -> Hadoop:
    """Compile the stand-in for the streaming jar.

    Args:
        folder: new; for everything that is made.

    Raises:
        CalledProcessError: it does not compile.
    """
    import pyspark

    jars = Path(pyspark.__file__).parent / "jars"
    classes, streaming, work = folder / "classes", folder / "streaming.jar", folder / "work"
    work.mkdir(parents=True)
    subprocess.run(
        ["javac", "-cp", f"{jars}/*", "-d", str(classes), str(HERE / "Streaming.java")], check=True, capture_output=True
    )
    subprocess.run(["jar", "cf", str(streaming), "-C", str(classes), "."], check=True, capture_output=True)
    environment = {**os.environ, "HADOOP_JARS": str(jars), "HADOOP_WORK": str(work)}
    return Hadoop(HERE / "hadoop", streaming, folder, environment)
