"""The terminal that people sit at, and how a view is kept on it.

The cursor rests on an empty row at the top of the view, and nothing but that is remembered from one picture to the
next: what anyone else writes (another rank, MPI, a library in C) lands in the empty row and stays above, the next
picture begins where the cursor then is, and a terminal that was resized is simply drawn anew from there. The cursor is
never hidden and no mode of the terminal is changed, so that a process that is killed leaves nothing to mend.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from engine.heartbeat import LAUNCHERS

_END_OF_LINE, _BELOW = "\x1b[K", "\x1b[J"


@dataclass(frozen=True)
class Terminal:
    """A terminal that standard error leads to.

    Args:
        fd: an open descriptor of it.
        owner: number of the process whose standard error it is: this one, or the launcher that passes it on.
        shows_output: whether standard output leads to the same terminal.
    """

    fd: int
    owner: int
    shows_output: bool

    def size(self) -> tuple[int, int]:
        """Columns and rows."""
        try:
            found = os.get_terminal_size(self.fd)
        except OSError:
            return 80, 24
        return found.columns or 80, found.lines or 24

    def in_front(self) -> bool:
        """Whether the shell has this job in front: one in the background must not draw over what is typed."""
        try:
            fields = Path(f"/proc/{self.owner}/stat").read_text().rpartition(")")[2].split()
            group, terminal, front = int(fields[2]), int(fields[4]), int(fields[5])
            device = os.fstat(self.fd).st_rdev
        except (OSError, ValueError, IndexError):
            return True
        # Only a process's controlling terminal has a group in front that says anything about it.
        return front == group or _device(terminal) != (os.major(device), os.minor(device))

    def paint(self, messages: Sequence[str], view: Sequence[str]) -> None:
        """Write messages, which stay, and beneath them a view in place of the last one.

        Args:
            view: lines that fit the terminal; none takes the view away.

        Raises:
            OSError: the terminal is gone.
        """
        text = "\r" + "".join(f"{message}{_END_OF_LINE}\r\n" for message in messages)
        text += f"{_END_OF_LINE}\r\n".join(["", *view]) + _BELOW
        if view:
            text += f"\x1b[{len(view)}A\r"
        _write(self.fd, text)

    def write(self, messages: Sequence[str]) -> None:
        """Write lines, as any program does.

        Raises:
            OSError: the terminal is gone.
        """
        _write(self.fd, "".join(f"{message}\r\n" for message in messages))

    def close(self) -> None:
        """Give the descriptor back."""
        os.close(self.fd)


def _write(fd: int, text: str) -> None:
    data = text.encode(errors="replace")
    while data:
        data = data[os.write(fd, data) :]


def _device(number: int) -> tuple[int, int]:
    """Major and minor number of a terminal as /proc/PID/stat has it."""
    return (number >> 8) & 0xFFF, (number & 0xFF) | ((number >> 12) & 0xFFF00)


def find_terminal() -> Terminal | None:
    """The terminal that standard error leads to, directly or through the launcher on this host; None without one.

    mpirun gives ranks a pipe and passes on what comes out of it, with a tag before each line if told to: a view is
    written past it. horovodrun becomes mpirun.
    """
    if os.environ.get("TERM", "dumb") in ("dumb", "unknown", ""):
        return None
    own = os.getpid()
    found = _terminal_of(own)
    if found is None:
        parent = os.getppid()
        with suppress(OSError):
            if Path(f"/proc/{parent}/comm").read_text().startswith(LAUNCHERS):
                found = _terminal_of(parent)
    return found


def _terminal_of(process: int) -> Terminal | None:
    try:
        fd = os.open(f"/proc/{process}/fd/2", os.O_WRONLY | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        return None
    with suppress(OSError):
        if os.isatty(fd):
            return Terminal(fd, process, _same_terminal(fd, Path(f"/proc/{process}/fd/1")))
    os.close(fd)
    return None


def _same_terminal(fd: int, other: Path) -> bool:
    try:
        mine, its = os.fstat(fd), other.stat()
    except OSError:
        return False
    return stat.S_ISCHR(its.st_mode) and mine.st_rdev == its.st_rdev
