"""A terminal for tests: a pty with a terminal emulator at its other end, which knows what a person would see."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import termios
import time
from collections.abc import Callable
from pathlib import Path

import pyte

PATIENCE = 240.0
ESCAPES = re.compile(r"\x1b(?:\[[0-9;?]*[A-Za-z]|.)")


class Screen:
    """What a terminal shows of what is written to `fd`.

    Args:
        columns, rows: its size.
    """

    def __init__(self, columns: int = 80, rows: int = 24) -> None:
        self._master, self.fd = pty.openpty()
        self.raw = b""
        self.screen = pyte.HistoryScreen(columns, rows, history=10_000)
        self._stream = pyte.ByteStream(self.screen)
        self.resize(columns, rows)

    def resize(self, columns: int, rows: int) -> None:
        """As a person does with the mouse."""
        self.screen.resize(rows, columns)
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type(self, keys: bytes) -> None:
        """As a person does on the keyboard."""
        os.write(self._master, keys)

    def feed(self, seconds: float = 0.05) -> bool:
        """Take in what was written; whether anything came, and False for ever once nobody can write any more."""
        try:
            if not select.select([self._master], [], [], seconds)[0]:
                return False
            data = os.read(self._master, 1 << 16)
        except OSError:
            return False
        self.raw += data
        self._stream.feed(data)
        return bool(data)

    def wait_for(self, condition: Callable[[], object], what: str) -> None:
        """Take in until it holds."""
        limit = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < limit, f"never seen: {what}; there is\n" + "\n".join(self.lines())
            self.feed()

    def settle(self) -> None:
        """Take in what is there."""
        while self.feed():
            pass

    def lines(self) -> list[str]:
        """What is on the screen."""
        return [line.rstrip() for line in self.screen.display]

    def all_lines(self) -> list[str]:
        """That, and before it what has left it at the top."""
        width = self.screen.columns
        gone = ["".join(row[place].data for place in range(width)).rstrip() for row in self.screen.history.top]
        return gone + self.lines()

    def shows(self, text: str) -> bool:
        """Whether a text is on the screen."""
        return text in "\n".join(self.lines())

    def text(self) -> str:
        """All that was written and stayed, without the ends of lines: a long one takes several."""
        return "".join(self.all_lines())

    def escapes(self) -> set[str]:
        """Kinds of control sequences that were written: their last letters, a question mark where one sets a mode."""
        found = ESCAPES.findall(self.raw.decode(errors="replace"))
        return {("?" if "?" in code else "") + code[-1] for code in found}

    def close_master(self) -> None:
        """The window is closed."""
        os.close(self._master)
        self._master = -1

    def close(self) -> None:
        """Give the descriptors back."""
        for fd in (self._master, self.fd):
            if fd >= 0:
                os.close(fd)
        self._master = self.fd = -1

    @property
    def device(self) -> Path:
        """The terminal's file."""
        return Path(os.ttyname(self.fd))
