"""How every command ends: a status, and one line for an error, never a traceback."""

from __future__ import annotations

import os
import socket
import sys
import traceback
from collections.abc import Callable

from engine.environment import launcher_rank
from engine.errors import Preempted, RankError, TrainingError, UsageError
from native.format import DatasetError

INTERRUPTED = 130


def report_error(program: str, error: BaseException) -> int:
    """Print an error as one line; returns the exit status: 2 for what the user can mend, 1 for a failed run.

    UsageError, TrainingError and Preempted are raised by all ranks together, so that rank 0 speaks for the job.
    Anything else happened to one rank, which names itself.
    """
    if os.environ.get("ENGINE_TRACEBACK") == "1":
        traceback.print_exception(error)
    text = " ".join(str(error).split())
    if isinstance(error, UsageError | TrainingError | Preempted):
        if launcher_rank() == 0:
            print(f"{program}: {text}", file=sys.stderr, flush=True)
        return error.status if isinstance(error, Preempted) else 1 if isinstance(error, TrainingError) else 2
    where = f"rank {launcher_rank()} on {socket.gethostname()}: "
    if isinstance(error, DatasetError):
        print(f"{program}: {where}{text}", file=sys.stderr, flush=True)
        return 2
    if isinstance(error, KeyboardInterrupt):
        print(
            f"{program}: {where}interrupted; the same command goes on from the last checkpoint",
            file=sys.stderr,
            flush=True,
        )
        return INTERRUPTED
    if isinstance(error, RankError):
        print(f"{program}: {where}{text}", file=sys.stderr, flush=True)
        return 1
    name = type(error).__name__
    print(f"{program}: {where}{name}: {text} (ENGINE_TRACEBACK=1 shows where)", file=sys.stderr, flush=True)
    return 1


def run_alone(program: str, work: Callable[[], None]) -> int:
    """Run a command that is one process; returns its exit status."""
    for stream in (sys.stdin, sys.stdout):
        if hasattr(stream, "reconfigure"):
            # Texts come from anywhere: what is not UTF-8 is replaced, not a reason to stop.
            stream.reconfigure(encoding="utf-8", errors="replace")
    try:
        work()
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader (head, a pager) has had enough; nothing more can be written, at exit neither.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (UsageError, DatasetError) as error:
        print(f"{program}: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
        return 2
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr, flush=True)
        return INTERRUPTED
    except Exception as error:
        return report_error(program, error)
    return 0
