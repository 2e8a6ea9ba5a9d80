"""`python -m mr`: the command, its exit status and its last words."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from types import FrameType

from mr.driver import number_of_stages, preprocess
from mr.errors import RunError, UsageError
from mr.options import parse_options
from mr.progress import Progress
from mr.report import report
from native.format import QUARANTINE_FILE, DatasetError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status: 0 done, 1 failed while running, 2 wrong usage or unusable input."""
    # A terminated run ends its processes like a failed one.
    signal.signal(signal.SIGTERM, _stop)
    try:
        options = parse_options(sys.argv[1:] if arguments is None else arguments)
        progress = Progress(number_of_stages(options))
        signal.signal(signal.SIGTERM, lambda number, _: progress.stop(128 + number))
        manifest = preprocess(options, progress)
    except UsageError as error:
        return _say(str(error), 2)
    except RunError as error:
        return _say(str(error), 1)
    except DatasetError as error:
        return _say(f"the dataset could not be written: {error}", 1)
    except KeyboardInterrupt:
        return _say("interrupted; no dataset was written", 130)
    except MemoryError:
        return _say("out of memory; no dataset was written: use fewer --cores", 1)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _say(f"{where}{error.strerror or error}; no dataset was written: check space and permissions", 1)
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # file names may hold anything
    print(report(manifest), end="")
    if manifest["counts"]["malformed"]:
        print(f"malformed lines, each with its reason: {options.out / QUARANTINE_FILE}")
    print(f"dataset: {options.out}")
    return 0


def _say(message: str, status: int) -> int:
    print("mr: " + " ".join(message.split()), file=sys.stderr)
    return status


def _stop(signal_number: int, _: FrameType | None) -> None:
    raise SystemExit(128 + signal_number)
