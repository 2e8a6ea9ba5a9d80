"""Start-up and the ranks: Horovod for tensors, mpi4py for timings, on one MPI; and how a failing rank ends all.

Horovod and mpi4py are imported when a session starts, not before: evaluate and predict run without them.
"""

from __future__ import annotations

import atexit
import os
import socket
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from engine.command import report_error
from engine.environment import (
    agree_on_waiting,
    arm_wait_hook,
    keep_memory,
    mpi_libraries,
    prepare_environment,
    started_with_gloo,
    usable_cores,
)
from engine.errors import Preempted, TrainingError, UsageError
from engine.heartbeat import Heartbeat, connect


@dataclass(frozen=True)
class Session:
    """This rank among all ranks; made by `init`."""

    rank: int
    size: int
    local_rank: int
    local_size: int
    device: torch.device
    threads: int
    comm: Any
    """mpi4py communicator of the engine's own (a duplicate of COMM_WORLD)"""
    hvd: Any
    """horovod.torch"""
    heartbeat: Heartbeat | None = None
    """None where there is nobody to watch"""
    step_timeout: float = 0.0
    """seconds that input or compute of a step, or saving, may take; 0 for any time"""

    @property
    def root(self) -> bool:
        """Whether this is rank 0."""
        return self.rank == 0

    @property
    def place(self) -> list[Any]:
        """Where this rank runs: host, device and threads; plain values."""
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "cpu"
        return [socket.gethostname(), name, self.threads]

    def sum_array(self, values: np.ndarray) -> np.ndarray:
        """The sum over all ranks of a float64 array; for figures, not gradients."""
        total = np.empty_like(values)
        self.comm.Allreduce(values, total)
        return total

    def broadcast(self, tensors: Sequence[Tensor]) -> None:
        """Give every rank rank 0's values, in place."""
        if self.size > 1:
            for number, tensor in enumerate(tensors):
                self.hvd.broadcast_(tensor, root_rank=0, name=f"engine.broadcast.{number}")

    def agree(self, what: dict[str, Any]) -> None:
        """Check that all ranks hold the same values.

        Raises:
            UsageError: on every rank, naming the first field that differs and who has which value.
        """
        everyone = self.comm.allgather({name: repr(value) for name, value in what.items()})
        for name in what:
            values = [fields.get(name) for fields in everyone]
            if len(set(values)) > 1:
                other = next(rank for rank, value in enumerate(values) if value != values[0])
                hosts = self.comm.allgather(socket.gethostname())
                raise UsageError(
                    f"the ranks disagree on {name}: rank 0 on {hosts[0]} has {values[0]}, rank {other} on "
                    f"{hosts[other]} has {values[other]}; give all ranks the same version, files and options"
                )

    def together(self, error: Exception | None) -> None:
        """Fail on all ranks when any rank failed in a step of start-up; call it after that step on every rank.

        Raises:
            UsageError: on every rank, with the message of the first rank that failed.
        """
        errors = self.comm.allgather(None if error is None else str(error))
        failed = [rank for rank, message in enumerate(errors) if message is not None]
        if failed:
            where = "" if len(failed) == self.size else f"rank {failed[0]}: "
            raise UsageError(where + str(errors[failed[0]])) from error


def init(device: str = "auto", threads: int = 0, rank_timeout: float = 60.0, step_timeout: float = 1800.0) -> Session:
    """Start Horovod and MPI for this process, pick its device and set its threads.

    From then on an exception that nobody catches on one rank ends all ranks, and so does a rank that is killed, hangs
    or is cut off (engine.heartbeat): none is left waiting.

    Args:
        device: "auto" (a GPU per local rank where there are GPUs), "cpu" or "cuda".
        threads: CPU threads of torch; 0 divides this host's usable cores by its ranks.
        rank_timeout: seconds after which a rank that gives no sign of life is lost; 0 for no watching.
        step_timeout: seconds after which a rank that is still at the input or compute of the same step, or at saving,
            ends all ranks; 0 for no limit.

    Raises:
        UsageError: no GPU where one was asked for, Horovod without MPI, or two different MPIs.
    """
    prepare_environment()
    # Autotune would change the order of reductions while training runs, and so the bits.
    os.environ["HOROVOD_AUTOTUNE"] = "0"
    os.environ["HOROVOD_FUSION_THRESHOLD"] = "0"  # it would fuse by order of arrival
    hvd, comm, asleep = _start_mpi()
    local_rank, local_size = hvd.local_rank(), hvd.local_size()
    # A launcher may have given each rank cores of its own; only those that are shared are divided.
    mine = (socket.gethostname(), sorted(os.sched_getaffinity(0)))
    sharing = comm.allgather(mine).count(mine)
    threads = threads or max(1, int(usable_cores()) // sharing)
    torch.set_num_threads(threads)
    place, problem = torch.device("cpu"), None
    try:
        place = _device(device, local_rank)
    except UsageError as error:
        problem = error
    session = Session(hvd.rank(), hvd.size(), local_rank, local_size, place, threads, comm, hvd)
    session.together(problem)
    heartbeat = connect(comm, float(max(comm.allgather(rank_timeout))))
    session = replace(session, heartbeat=heartbeat, step_timeout=step_timeout)
    if heartbeat is not None:
        atexit.register(heartbeat.close)
    if place.type == "cuda":
        torch.cuda.set_device(place)
    else:
        keep_memory()
    # Between processes of one host MPI's own sums are quicker than waits that sleep.
    if asleep and all(kind == "cpu" for kind in comm.allgather(place.type)):
        from native import mpi_wait

        mpi_wait.use_rings(local_size < session.size)
    if not isinstance(sys.excepthook, _EndAllRanks):  # init may be called again
        sys.excepthook = _EndAllRanks(session, sys.excepthook)
    return session


_GLOO = (
    "Horovod was started with Gloo, without MPI, and the timings travel over MPI; start with horovodrun --mpi or mpirun"
)


def _start_mpi() -> tuple[Any, Any, bool]:
    obstacle = arm_wait_hook()
    if started_with_gloo():
        raise UsageError(_GLOO)
    import mpi4py

    # mpi4py starts MPI and so ends it too, when this process ends. Started by Horovod, it would be ended by Horovod's
    # thread as soon as the first rank ends, under the hands of ranks that are not yet done with it.
    mpi4py.rc.initialize = mpi4py.rc.finalize = True
    mpi4py.rc.thread_level = "multiple"
    from mpi4py import MPI

    try:
        import horovod.torch as hvd
    except ImportError as error:
        raise UsageError(
            f"Horovod is not usable ({error}); run make setup, or python -m engine.doctor for more"
        ) from None
    hvd.init()
    if not hvd.mpi_enabled():
        raise UsageError(_GLOO)
    if hvd.size() != MPI.COMM_WORLD.size or len(mpi_libraries()) > 1:
        raise UsageError("Horovod and mpi4py use two different MPI libraries; python -m engine.doctor names both")
    if hvd.size() > 1 and MPI.Query_thread() != MPI.THREAD_MULTIPLE:
        raise UsageError(
            "this MPI was started without support for threads (MPI_THREAD_MULTIPLE), which Horovod and "
            "mpi4py need side by side; use an Open MPI 4 that has it"
        )
    comm = MPI.COMM_WORLD.Dup()
    return hvd, comm, agree_on_waiting(obstacle, comm)


def _device(wanted: str, local_rank: int) -> torch.device:
    gpus = torch.cuda.device_count()
    if wanted == "cpu" or (wanted == "auto" and gpus == 0):
        return torch.device("cpu")
    if gpus == 0:
        raise UsageError(
            "--device cuda: this host shows no GPU to torch; use --device cpu, or see python -m engine.doctor"
        )
    if local_rank >= gpus:
        raise UsageError(
            f"local rank {local_rank} has no GPU of its own, this host shows {gpus}; start one rank per GPU"
        )
    return torch.device("cuda", local_rank)


def run_on_all_ranks(program: str, session: Session, work: Callable[[], None]) -> int:
    """Run `work` on this rank; whatever it raises, no other rank is left waiting.

    Returns:
        The exit status of the process.
    """
    try:
        work()
    except (UsageError, TrainingError, Preempted) as error:
        return report_error(program, error)
    except BaseException as error:
        status = report_error(program, error)
        _abort(session, status)
        return status
    return 0


def _abort(session: Session, status: int) -> None:
    """End all ranks; this one has said why."""
    if session.heartbeat is not None:
        session.heartbeat.fail()
    if session.size > 1:
        session.comm.Abort(status)


class _EndAllRanks:
    """An excepthook for users' own scripts: an exception that nobody catches on one rank ends all ranks."""

    def __init__(self, session: Session, previous: Callable[..., Any]) -> None:
        self._session, self._previous = session, previous

    def __call__(self, kind: type[BaseException], error: BaseException, trace: Any) -> None:
        self._previous(kind, error, trace)
        if self._session.size > 1:
            where = f"rank {self._session.rank} on {socket.gethostname()}"
            print(f"engine: {where} failed with {kind.__name__}; all ranks end now", file=sys.stderr, flush=True)
            _abort(self._session, 1)
