"""Starting real jobs under mpirun, watching them and killing their ranks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 120
"""seconds after which something that should have happened long ago is a failure"""


def environment() -> dict[str, str]:
    root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"} if os.geteuid() == 0 else {}
    return {**os.environ, "OMPI_MCA_mpi_yield_when_idle": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **root}


def mpirun() -> str:
    beside = Path(sys.executable).parent / "mpirun"
    return str(beside) if beside.exists() else "mpirun"


def command(ranks: int, *arguments: object, program: tuple[object, ...] = ("-m", "engine.train")) -> list[str]:
    """The command line of a job on this many ranks."""
    return [
        mpirun(),
        "--oversubscribe",
        "--bind-to",
        "none",
        "-n",
        str(ranks),
        sys.executable,
        *map(str, program),
        "--threads",
        "1",
        "--device",
        "cpu",
        *map(str, arguments),
    ]


def run(*line: object) -> subprocess.CompletedProcess[str]:
    """Run to the end, whatever the end is."""
    return subprocess.run(
        [str(word) for word in line],
        env=environment(),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def start(*line: object) -> subprocess.Popen[str]:
    """Start, and go on."""
    return subprocess.Popen(
        [str(word) for word in line],
        env=environment(),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def ranks_of(job: subprocess.Popen[str] | subprocess.Popen[bytes]) -> list[psutil.Process]:
    """The ranks' processes, in the order of their ranks."""
    found = []
    for process in psutil.Process(job.pid).children(recursive=True):
        try:
            found.append((int(process.environ()["OMPI_COMM_WORLD_RANK"]), process))
        except (KeyError, psutil.Error):
            continue
    return [process for _, process in sorted(found, key=lambda pair: pair[0])]


def wait_until(condition: Any, what: str) -> None:
    """Poll a condition."""
    limit = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < limit, f"never came: {what}"
        time.sleep(0.02)


def events(out: Path) -> list[dict[str, Any]]:
    """The whole lines of metrics.jsonl."""
    path = out / "metrics.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]


def alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def options(data: Path, out: Path) -> list[object]:
    return [
        "--data",
        data,
        "--out",
        out,
        "--epochs",
        8,
        "--batch-size",
        48,
        "--balance",
        "off",
        "--log-every",
        1,
        "--checkpoint-every",
        10,
        "--hidden-size",
        8,
        "--embedding-size",
        8,
        "--ngram-entries",
        500,
    ]
