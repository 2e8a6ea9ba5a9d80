"""Which hosts of a job answer ssh."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterable, Sequence

from engine.processes import Processes

TURNS = 3
"""times that a host is asked before it counts as lost"""
TURN_SECONDS = 8.0
RETRY_SECONDS = 2.0
# ssh takes the first value that it is given: these stand before the launcher's own.
_OPTIONS = ("-o", "BatchMode=yes", "-o", "ConnectTimeout=5", "-o", "ConnectionAttempts=1")


def answering(names: Iterable[str], ssh: Sequence[str], processes: Processes) -> set[str]:
    """Those hosts that answer ssh within half a minute; this host counts as one that does.

    Args:
        names: names or addresses.
        ssh: what to give ssh before the name.
        processes: starts ssh, for all hosts at once.

    Raises:
        Stopped: a signal came meanwhile.
        OSError: ssh cannot be started.
    """
    names = set(names)
    found = {name for name in names if is_local(name)}
    for turn in range(TURNS):
        if found == names:
            break
        if turn:
            processes.pause(RETRY_SECONDS)
        found |= _ask(names - found, ssh, processes)
    return found


def _ask(names: Iterable[str], ssh: Sequence[str], processes: Processes) -> set[str]:
    asked = {name: processes.start(["ssh", *_OPTIONS, *ssh, name, "true"], quiet=True) for name in names}
    try:
        until = time.monotonic() + TURN_SECONDS
        while any(process.poll() is None for process in asked.values()) and time.monotonic() < until:
            processes.pause(0.1)
        return {name for name, process in asked.items() if process.poll() == 0}
    finally:
        for process in asked.values():
            process.kill()
            process.wait()


def is_local(name: str) -> bool:
    """Whether a name or an address means this host."""
    own = socket.gethostname()
    if name in ("localhost", own, own.partition(".")[0]):
        return True
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_DGRAM)
    except OSError:
        return False
    return any(_can_bind(family, address) for family, _, _, _, address in found)


def _can_bind(family: int, address: tuple[object, ...]) -> bool:
    # The kernel lets a socket take only an address of this host.
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as trial:
            trial.bind((address[0], 0, *address[2:]))
            return True
    except OSError:
        return False
