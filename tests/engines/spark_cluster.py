"""A real Spark standalone cluster on loopback, from pyspark's own files: a master and workers, each a JVM."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

START_SECONDS = 120


@contextmanager
def spark_cluster(folder: Path, workers: int = 2) -> Iterator[str]:
    """Run a cluster; yields its master's URL.

    Args:
        folder: new; for logs and the workers' files.
        workers: of one core each.

    Raises:
        RuntimeError: it did not start; the message has the end of the log.
    """
    import pyspark

    spark_class = Path(pyspark.__file__).parent / "bin" / "spark-class"
    environment = {**os.environ, "SPARK_LOCAL_IP": "127.0.0.1", "PYSPARK_PYTHON": sys.executable}
    folder.mkdir(parents=True)
    with ExitStack() as stack:

        def start(name: str, *arguments: str) -> Path:
            log = folder / f"{name}.log"
            stream = stack.enter_context(log.open("wb"))
            command = [str(spark_class), f"org.apache.spark.deploy.{arguments[0]}", "--host", "127.0.0.1"]
            process = subprocess.Popen(
                [*command, "--port", "0", "--webui-port", "0", *arguments[1:]],
                env=environment, stdin=subprocess.DEVNULL, stdout=stream, stderr=subprocess.STDOUT,
            )  # fmt: skip
            stack.callback(process.wait)
            stack.callback(process.terminate)
            return log

        master = start("master", "master.Master")
        url = "spark://" + _word_after("Starting Spark master at spark://", master, 1)[0]
        for number in range(workers):
            work = str(folder / f"worker-{number}")
            start(
                f"worker-{number}", "worker.Worker", "--cores", "1", "--memory", "2g", "--work-dir", work, url
            )  # fmt: skip
        _word_after("Registering worker ", master, workers)
        yield url


def _word_after(text: str, log: Path, times: int) -> list[str]:
    """The words that follow a text in a log, as soon as it stands there so many times."""
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        words = [rest.split()[0] for rest in log.read_text("utf-8", "replace").split(text)[1:] if rest.strip()]
        if len(words) >= times:
            return words
        time.sleep(0.2)
    raise RuntimeError(f"{text!r} does not stand {times} times in {log}: {log.read_text('utf-8', 'replace')[-500:]}")
