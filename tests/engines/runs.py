"""Runs of `python -m mr`, as a user starts them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from native.format import read_manifest

ROOT = Path(__file__).parents[2]
DATA = ROOT.parent / "shared" / "data"
ROWS = int(os.environ.get("ROWS", "1000000"))
"""generated reviews that all engines get"""


def call(*arguments: object, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run `python -m mr` as a user does; no mrjob.conf but a given one is read."""
    return subprocess.run(
        [sys.executable, "-m", "mr", *map(str, arguments)],
        env={**(environment or os.environ), "PYTHONPATH": str(ROOT), "MRJOB_CONF": os.devnull, "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )


def made(out: Path, *arguments: object, environment: dict[str, str] | None = None) -> dict:
    """The manifest of a dataset that a run made."""
    done = call(*arguments, "--out", out, environment=environment)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return read_manifest(out)


def files(folder: Path) -> dict[str, bytes]:
    """Everything in a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def errors(done: subprocess.CompletedProcess[str]) -> list[str]:
    """What a run said on standard error besides its progress."""
    return [line for line in done.stderr.splitlines() if not line.startswith("[")]
