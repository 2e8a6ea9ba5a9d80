"""What the commands print for --help: for the page of commands, and for the test that the texts name real options."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# One process for all: most of the time goes into importing torch.
_SHOW = """
import contextlib, io, json, runpy, sys
shown = {}
for module in sys.argv[1:]:
    sys.argv = [module, "--help"]
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        try:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        except SystemExit as end:
            assert not end.code, (module, end.code)
    shown[module] = text.getvalue()
print(json.dumps(shown))
"""


def help_of(modules: Iterable[str]) -> dict[str, str]:
    """The help text of each `python -m MODULE`.

    Raises:
        RuntimeError: a module cannot be run, with what it said.
    """
    done = subprocess.run(
        [sys.executable, "-c", _SHOW, *modules],
        cwd=ROOT,
        env=os.environ | {"COLUMNS": "100"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"--help of {', '.join(modules)}: {done.stderr.strip()}")
    shown: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return shown
