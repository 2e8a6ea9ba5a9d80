"""A job's processes on this host: signals waited for, and every process below this one found and ended. Linux."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence

import psutil

STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
LAUNCHERS = ("mpirun", "mpiexec", "orterun", "prterun", "srun")
"""they hand SIGUSR1 on to all ranks, on all hosts"""
LINGER_SECONDS = 1.0
"""that a job's processes may take to go after it has ended: MPI's helpers notice it a moment later"""
GRACE_SECONDS = 5.0
"""for what is then still there, between SIGTERM and SIGKILL"""
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36


class Stopped(Exception):
    """A signal came that asks this process to end."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class Processes:
    """Starts processes and waits for them and for signals; make one, in a program with one thread.

    The signals of STOPS are held back and fetched by `wait`, so that none is lost between a look and a sleep. Processes
    whose parent has died become this one's children, so that a job cannot lose any by starting a session of its own.
    """

    def __init__(self) -> None:
        self._watched = {*STOPS, signal.SIGCHLD}
        self._mask = signal.pthread_sigmask(signal.SIG_BLOCK, self._watched)
        self._prctl = ctypes.CDLL(None, use_errno=True).prctl
        self._prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)

    def wait(self, seconds: float) -> int | None:
        """A signal of STOPS that has come; None after the time, or sooner when a process has ended."""
        found = signal.sigtimedwait(self._watched, max(0.0, seconds))
        return None if found is None or found.si_signo == signal.SIGCHLD else found.si_signo

    def pause(self, seconds: float) -> None:
        """Sleep.

        Raises:
            Stopped: a signal of STOPS came.
        """
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            number = self.wait(left)
            if number is not None:
                raise Stopped(number)

    def start(
        self, words: Sequence[str], *, quiet: bool = False, environment: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        """Start a process in a session of its own, without input.

        Args:
            words: the program and its arguments.
            quiet: drop what it prints.
            environment: its environment; None for this process's.

        Raises:
            OSError: there is no such program, or it cannot be started.
        """
        output = subprocess.DEVNULL if quiet else None
        return subprocess.Popen(
            words,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            preexec_fn=self._in_child,
        )

    def _in_child(self) -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)
        # Should this process be killed, the job saves and ends instead of going on unwatched.
        self._prctl(_PR_SET_PDEATHSIG, int(signal.SIGUSR1), 0, 0, 0)


def ask_to_end(process: subprocess.Popen[bytes], number: int) -> None:
    """Hand a signal on to a job so that its ranks can still save.

    mpirun kills its ranks one second after SIGTERM, and srun ends its step; both hand SIGUSR1 on and wait. horovodrun
    dies of it while it prepares, and becomes mpirun after that.
    """
    with contextlib.suppress(psutil.Error):
        job = psutil.Process(process.pid)
        for candidate in (job, *job.children(recursive=True)):
            if number != signal.SIGINT and candidate.name().startswith(LAUNCHERS):
                candidate.send_signal(signal.SIGUSR1)
                return
        job.send_signal(number)


def reap(job: subprocess.Popen[bytes]) -> None:
    """Take notice of the end of processes that a job has left to this one; the job's own is left to its Popen."""
    with contextlib.suppress(ChildProcessError):  # none at all
        while ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            if ended.si_pid == job.pid:
                return
            os.waitpid(ended.si_pid, 0)


def end_all(job: subprocess.Popen[bytes], grace: float = GRACE_SECONDS) -> int:
    """End a job, and every other process below this one.

    Args:
        job: where it has ended already, the others get a moment to go by themselves.
        grace: seconds between SIGTERM and SIGKILL; 0 kills at once.

    Returns:
        How many processes had to be ended.
    """
    found = _running(job)
    if found and job.returncode is not None:
        _wait_for_all(found, job, LINGER_SECONDS)
        found = _running(job)
    if grace and found:
        _signal_all(found, signal.SIGTERM)
        _wait_for_all(found, job, grace)
    until = time.monotonic() + GRACE_SECONDS
    while (left := _running(job)) and time.monotonic() < until:  # one that starts others may be faster than one look
        _signal_all(left, signal.SIGKILL)
        _wait_for_all(left, job, 1.0)
    return len(found)


def _running(job: subprocess.Popen[bytes]) -> list[psutil.Process]:
    reap(job)
    job.poll()
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def _signal_all(processes: Sequence[psutil.Process], number: int) -> None:
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.send_signal(number)


def _wait_for_all(processes: Sequence[psutil.Process], job: subprocess.Popen[bytes], seconds: float) -> None:
    # The job's status is its Popen's to fetch: psutil would take it away.
    until = time.monotonic() + seconds
    psutil.wait_procs([process for process in processes if process.pid != job.pid], timeout=seconds)
    with contextlib.suppress(subprocess.TimeoutExpired):
        job.wait(max(0.0, until - time.monotonic()))
