"""`python -m engine.supervise --max-restarts N -- COMMAND`: runs a job, and after a failure runs it again.

The engine goes on from RUN's last checkpoint by itself (--resume auto). A restart takes the hosts that still answer ssh
and so many ranks as fit there; the global batch does not depend on their number, so the trajectory continues.
docs/faults.md says what is restarted and what is not.
"""

from __future__ import annotations

import math
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from engine.command_line import make_parser
from engine.errors import UsageError
from engine.hosts import answering, is_local
from engine.launcher import Command, Host, ranks_left, read_command
from engine.processes import Processes, Stopped, ask_to_end, end_all, reap
from engine.restarts import Outcome, Restarts
from engine.watched_run import WatchedRun

PROGRAM = "engine.supervise"
STOP_SECONDS = 600.0
"""most time that a job gets to save and end after a signal"""
HOST_LOOKS = 5
"""times that a job's hosts are looked for while none of them answers"""


class Supervisor:
    """Runs one command until it is done, or until another start is pointless.

    Args:
        command: the command line.
        most: restarts allowed.
        wait: seconds between two looks for hosts while none answers.
    """

    def __init__(self, command: Command, most: int, wait: float) -> None:
        self._command, self._wait = command, wait
        self._environment = _first_environment()
        hosts = self._hosts()[0]
        self._run = WatchedRun(command.out, elsewhere=bool(hosts) and not is_local(hosts[0].name))
        self._restarts = Restarts(most, self._run.step())
        self._processes = Processes()
        self._folder = tempfile.TemporaryDirectory(prefix="engine-supervise-")

    def run(self) -> int:
        """Run; returns the exit status.

        Raises:
            UsageError: the command cannot be started at all.
        """
        words = self._command.words
        try:
            with self._folder:
                while True:
                    decision = self._restarts.after(self._run_once(words))
                    _say(decision.text)
                    if not decision.restart:
                        return decision.status
                    self._processes.pause(decision.pause)
                    found = self._words_now()
                    if found is None:
                        return decision.status
                    words = found
        except Stopped as stopped:
            _say(f"{stopped} while no job was running: not restarted, the same command goes on")
            return 128 + stopped.number

    def _run_once(self, words: Sequence[str]) -> Outcome:
        began, mark = time.monotonic(), self._run.mark()
        try:
            job = self._processes.start(words, environment=self._environment)
        except OSError as error:
            raise UsageError(f"{words[0]}: cannot be started ({error.strerror}); check the command after --") from None
        stopped_by = self._watch(job)
        if left := end_all(job):
            _say(f"ended what the job had left on this host: {left} processes")
        status = job.returncode if job.returncode >= 0 else 128 - job.returncode
        # A job that failed before it wrote anything leaves the end of an earlier one in the file.
        end = self._run.end() if self._run.mark() != mark else None
        return Outcome(status, time.monotonic() - began, self._run.step(), end, stopped_by)

    def _watch(self, job: subprocess.Popen[bytes]) -> int | None:
        """Wait for the end of a job and hand signals on to it; returns the first one."""
        came: list[int] = []
        until = math.inf
        while job.poll() is None:
            number = self._processes.wait(1.0)
            reap(job)
            if number is not None:
                came.append(number)
                until = min(until, time.monotonic() + STOP_SECONDS)
                if came.count(signal.SIGINT) > 1:
                    _say("SIGINT again: the job is killed")
                    end_all(job, grace=0)
                elif came.count(number) == 1:
                    _say(f"{signal.Signals(number).name}: the job is asked to end")
                    ask_to_end(job, number)
            if time.monotonic() > until:
                until = math.inf
                _say(f"the job has not ended in {STOP_SECONDS:.0f} s: it is killed")
                end_all(job)
        return came[0] if came else None

    def _words_now(self) -> tuple[str, ...] | None:
        """The command for the hosts that answer; None where none does, after waiting for them."""
        hosts, in_file = self._hosts()
        names = list(dict.fromkeys(host.name for host in hosts))
        for look in range(1, HOST_LOOKS + 1):
            try:
                found = answering(names, self._command.ssh(self._environment), self._processes)
            except OSError as error:
                _say(f"ssh cannot be started ({error.strerror}), so that all hosts count as there")
                return self._command.words
            left = [host for host in hosts if host.name in found]
            if len(left) == len(hosts):
                return self._command.words
            if left:
                return self._words_for(hosts, left, in_file)
            wait = f"; the next look in {self._wait:.0f} s" if look < HOST_LOOKS else ": giving up"
            _say(f"no host answers ssh ({', '.join(names)}), look {look} of {HOST_LOOKS}{wait}")
            if look < HOST_LOOKS:
                self._processes.pause(self._wait)
        return None

    def _hosts(self) -> tuple[tuple[Host, ...], bool]:
        """The hosts that the command names, and whether a file names them."""
        named = self._command.hosts()
        path = self._command.hostfile
        if path is None and not named and self._command.launcher == "mpirun":
            path = self._environment.get("OMPI_MCA_orte_default_hostfile")
        if path is None:
            return named, False
        try:
            return self._command.hosts(Path(path).read_text()), True
        except (OSError, UnicodeDecodeError) as error:
            _say(f"{path}: cannot be read ({error}), so that all hosts count as there")
            return (), True

    def _words_for(self, hosts: Sequence[Host], left: Sequence[Host], in_file: bool) -> tuple[str, ...]:
        hostfile = None
        if in_file:
            path = Path(self._folder.name) / f"hosts-{self._restarts.used}"
            path.write_text("".join(f"{host.entry}\n" for host in left))
            hostfile = str(path)
        words = self._command.for_hosts(left, ranks_left(self._command.ranks, hosts, left), hostfile)
        lost = dict.fromkeys(host.name for host in hosts if host not in left)
        _say(f"no answer from {', '.join(lost)}; without it: {shlex.join(words)}")
        return words


def _first_environment() -> dict[str, str]:
    """The environment that this program was started with.

    Importing the engine has set what a rank of this host needs (engine/environment.py); a job's ranks, perhaps on
    other hosts, are to find out for themselves.
    """
    try:
        pairs = (pair.partition("=") for pair in os.fsdecode(Path("/proc/self/environ").read_bytes()).split("\0"))
    except OSError:
        return dict(os.environ)
    return {name: value for name, equals, value in pairs if equals}


def _say(text: str) -> None:
    print(f"{PROGRAM}: {text}", file=sys.stderr, flush=True)


def _parse(arguments: Sequence[str]) -> Supervisor:
    end = arguments.index("--") if "--" in arguments else len(arguments)
    parser = make_parser(
        "python -m engine.supervise",
        "Run a job, and after a failure run it again on the hosts that still answer: options -- COMMAND ...",
    )
    parser.add_argument("--max-restarts", type=int, default=10, metavar="N", help="most restarts")
    parser.add_argument(
        "--wait", type=float, default=60.0, metavar="SECONDS", help="time between two looks while no host answers"
    )
    options = parser.parse_args(arguments[:end])
    if options.max_restarts < 0:
        raise UsageError("--max-restarts must be at least 0")
    if not 0 <= options.wait <= 86_400:
        raise UsageError("--wait must be from 0 to 86400 seconds")
    words = arguments[end + 1 :]
    if not words:
        raise UsageError(
            "no command to run; give it after --, as in: python -m engine.supervise -- "
            "horovodrun -np 2 python -m engine.train --data DATA --out RUN"
        )
    return Supervisor(read_command(words), options.max_restarts, options.wait)


def main(arguments: Sequence[str] | None = None) -> int:
    """Supervise as the command line says; returns the exit status."""
    try:
        return _parse(list(sys.argv[1:] if arguments is None else arguments)).run()
    except UsageError as error:
        _say(str(error))
        return 2


if __name__ == "__main__":
    sys.exit(main())
