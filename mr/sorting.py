"""Sorts files of records by their bytes, in bounded memory."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

from mr.children import start
from mr.errors import RunError

BUFFER = "128M"
"""memory of a sort; what does not fit goes to files"""


def sort_lines(inputs: Sequence[str | Path], output: str | Path, scratch: str | Path) -> None:
    """Sort the lines of all inputs into one file, which may be one of them.

    Sorting whole lines groups equal keys as well, and is faster than sorting by the key.

    Args:
        inputs: files; none gives an empty output.
        output: the file.
        scratch: a folder for what does not fit into memory.

    Raises:
        RunError: sort is not there, or failed, on a full disk for instance.
    """
    if not inputs:
        Path(output).touch()
        return
    command = ["sort", "-S", BUFFER, "--parallel=1", "-T", str(scratch), "-o", str(output), "--", *map(str, inputs)]
    environment = {**os.environ, "LC_ALL": "C"}
    try:
        process = start(command, env=environment, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
    except OSError as error:
        raise RunError(f"the command sort cannot be run ({error.strerror}); install GNU coreutils") from error
    with process:
        try:
            _, said = process.communicate()
        except BaseException:
            process.kill()
            raise
    code = process.returncode
    if code:
        ended = signal.Signals(-code).name if code < 0 else f"status {code}"
        told = " ".join(said.decode("utf-8", "replace").split()) or f"sort ended with {ended}"
        raise RunError(f"records could not be sorted: {told}; check space and permissions, or set TMPDIR")
