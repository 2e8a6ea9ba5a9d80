"""Progress on standard error: a line a stage; on a terminal the line of the running stage is renewed in place."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

RENEW_SECONDS = 0.2


class Progress:
    """Numbers the stages and times them.

    Args:
        stages: how many there will be.
        stream: where to write.
    """

    def __init__(self, stages: int, stream: TextIO | None = None) -> None:
        self._stages, self._stage = stages, 0
        self._stream = stream or sys.stderr
        self._terminal = self._stream.isatty()

    @contextmanager
    def stage(self, title: str) -> Iterator[Stage]:
        """One stage, from its beginning to its end."""
        self._stage += 1
        head = f"[{self._stage}/{self._stages}] {title}"
        stage = Stage(head, self._stream if self._terminal else None)
        self._write(f"\r{head} ..." if self._terminal else f"{head} ...\n")
        start = time.monotonic()
        try:
            yield stage
        except BaseException:
            self._write("\n" if self._terminal else "")
            raise
        detail = f"{stage.detail}, " if stage.detail else ""
        line = f"{head}: {detail}{time.monotonic() - start:.1f} s"
        self._write(f"\r{line}\x1b[K\n" if self._terminal else f"{line}\n")

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()


class Stage:
    """The running stage."""

    def __init__(self, head: str, stream: TextIO | None) -> None:
        self.detail = ""
        self._head, self._stream, self._renewed = head, stream, 0.0

    def tell(self, detail: str) -> None:
        """What has been done so far; may be called often."""
        self.detail = detail
        if self._stream and time.monotonic() - self._renewed > RENEW_SECONDS:
            self._renewed = time.monotonic()
            self._stream.write(f"\r{self._head}: {detail}\x1b[K")
            self._stream.flush()
