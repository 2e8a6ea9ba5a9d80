"""`python -m mr`: the command, its exit status and its last words."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mr.driver import number_of_stages, preprocess
from mr.errors import RunError, UsageError
from mr.options import parse_options
from mr.progress import Progress
from mr.report import report
from mr.stopping import Stopped, stoppable
from native.format import QUARANTINE_FILE, DatasetError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        Its exit status: 0 done, 1 failed while running, 2 wrong usage or unusable input, 130 or 143
        stopped by SIGINT or SIGTERM.
    """
    try:
        # A terminated run ends its processes like a failed one.
        with stoppable():
            out, manifest = _run(arguments)
    except UsageError as error:
        return _say(str(error), 2)
    except RunError as error:
        return _say(str(error), 1)
    except DatasetError as error:
        return _say(f"the dataset could not be written: {error}", 1)
    except Stopped as stopped:
        return _say(str(stopped), stopped.status)
    except MemoryError:
        return _say("out of memory; no dataset was written: use fewer --cores", 1)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _say(f"{where}{error.strerror or error}; no dataset was written: check space and permissions", 1)
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # file names may hold anything
    print(report(manifest), end="")
    if manifest["counts"]["malformed"]:
        print(f"malformed lines, each with its reason: {out / QUARANTINE_FILE}")
    print(f"dataset: {out}")
    return 0


def _run(arguments: Sequence[str] | None) -> tuple[Path, dict[str, Any]]:
    options = parse_options(sys.argv[1:] if arguments is None else arguments)
    return options.out, preprocess(options, Progress(number_of_stages(options)))


def _say(message: str, status: int) -> int:
    print("mr: " + " ".join(message.split()), file=sys.stderr)
    return status
