"""`engine.train` with a rank that is killed in a chosen phase of a chosen step: victim.py PHASE RANK STEP OPTIONS...

PHASE is compute (before a backward pass), allreduce (when the rank begins to wait for the others), checkpoint (rank 0:
in the middle of writing; others: while they wait for it) or rebalance (between timings sent and shares taken).
The first such moment at or after STEP counts. The kill is a real SIGKILL, sent by the process to itself.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from engine.environment import launcher_rank, prepare_environment

PHASES = ("compute", "allreduce", "checkpoint", "rebalance")


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def before(owner: Any, name: str, when: Callable[..., bool]) -> None:
    """Kill this process when a function is called and `when` says so of its arguments."""
    original = getattr(owner, name)

    def wrapped(*arguments: Any, **options: Any) -> Any:
        if when(*arguments, **options):
            die()
        return original(*arguments, **options)

    setattr(owner, name, wrapped)


def arm(phase: str, step: int) -> None:
    """Have this process killed."""
    from engine import checkpoint
    from engine.compute import LocalWork
    from engine.rebalance import Rebalancer
    from engine.reduction import Reducer
    from engine.trainer import Trainer

    now = [0]
    count = Trainer._count

    def counted(trainer: Trainer, *arguments: Any) -> None:
        count(trainer, *arguments)
        now[0] = trainer.progress.total_steps

    Trainer._count = counted  # type: ignore[method-assign]
    if phase == "compute":
        before(LocalWork, "forward", lambda work, batch, part, at: at >= step)
    elif phase == "allreduce":
        before(Reducer, "wait", lambda reducer: now[0] >= step)
    elif phase == "rebalance":
        before(Rebalancer, "after_step", lambda rebalancer, *rest: now[0] >= step and rebalancer._stage > 0)
    elif launcher_rank() == 0:

        def torn(path: Path, data: bytes) -> None:
            if now[0] < step:
                write(path, data)
                return
            with path.with_name(f".{path.name}.{os.getpid()}.part").open("wb") as stream:
                stream.write(data[: len(data) // 2])
                stream.flush()
                die()

        write = checkpoint.write_durably
        checkpoint.write_durably = torn
    else:
        state = Trainer.state

        def interrupted(trainer: Trainer) -> Any:
            found = state(trainer)
            if now[0] >= step:
                die()
            return found

        Trainer.state = interrupted  # type: ignore[method-assign]


def main() -> int:
    phase, rank, step = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    prepare_environment()
    if launcher_rank() == rank:
        arm(phase, step)
    from engine import train

    return train.main(sys.argv[4:])


if __name__ == "__main__":
    sys.exit(main())
