"""Running the steps of setting up: one line each, a log file each, a failure told in one line."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TextIO


class SetupError(Exception):
    """A step failed; the message is the one line for the user."""


class Console:
    """A line per step on standard output, with the time that it took."""

    def __init__(self) -> None:
        self.started = time.monotonic()

    def say(self, text: str) -> None:
        """Print one line with the time since the start."""
        elapsed = int(time.monotonic() - self.started)
        print(f"setup [{elapsed // 60:2d}:{elapsed % 60:02d}] {text}", flush=True)


class Runner:
    """Runs commands with their output in one log file per step."""

    def __init__(self, root: Path, logs: Path) -> None:
        self.root = root
        self.logs = logs

    def run(self, step: str, command: list[str], environ: Mapping[str, str], cure: str) -> None:
        """Run `command` in the root, adding to the step's log.

        Raises SetupError naming the step, the log and `cure` when it fails.
        """
        self.logs.mkdir(parents=True, exist_ok=True)
        log = self.logs / f"{step}.log"
        with log.open("a") as stream:
            stream.write(f"$ {' '.join(command)}\n")
            stream.flush()
            try:
                status = _run_whole(command, self.root, environ, stream)
            except OSError as error:
                raise SetupError(f"step {step}: {command[0]} cannot be run ({error.strerror}): {cure}") from error
        if status != 0:
            shown = os.path.relpath(log)
            raise SetupError(f"step {step} failed ({Path(command[0]).name} ended with {status}), see {shown}: {cure}")

    def fresh_log(self, step: str) -> Path:
        """Empty the step's log, so that it holds this attempt only; returns its path."""
        self.logs.mkdir(parents=True, exist_ok=True)
        log = self.logs / f"{step}.log"
        log.write_text("")
        return log


def _run_whole(command: list[str], where: Path, environ: Mapping[str, str], output: TextIO) -> int:
    """Run a command to its end; when this program is stopped, end it with all the compilers that it started."""
    process = subprocess.Popen(
        command, cwd=where, env=dict(environ), stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
        start_new_session=True,
    )  # fmt: skip
    try:
        return process.wait()
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise


def fail(message: str, status: int) -> int:
    """Print the one line that explains an unsuccessful end; returns `status`."""
    print(f"setup: {message}", file=sys.stderr, flush=True)
    return status
