"""How far something that counts bytes is: a bar in a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

LINE_SECONDS = 10.0
"""between lines where there is no terminal"""


class BytesShown:
    """Shows the progress of one piece of work; a context manager.

    Args:
        title: what is done.
        total: bytes.
        shown: False shows nothing.
        say: takes plain lines.
    """

    def __init__(self, title: str, total: int, shown: bool, say: Callable[[str], None]) -> None:
        self._title, self._total, self._shown, self._say = title, total, shown, say
        self._done = 0
        self._began = self._told = time.monotonic()
        self._bar: Any = None

    def __enter__(self) -> BytesShown:
        if self._shown and sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=self._total, desc=self._title, unit="B", unit_scale=True, leave=False)
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def add(self, count: int) -> None:
        """So many bytes more are done."""
        self._done += count
        if self._bar is not None:
            self._bar.update(count)
            return
        now = time.monotonic()
        if self._shown and now - self._told >= LINE_SECONDS:
            self._told = now
            rate = self._done / (now - self._began)
            left = max(0, self._total - self._done) / rate
            place = f"{in_words(self._done)} of {in_words(self._total)}"
            self._say(f"{self._title}: {place}, {in_words(rate)}/s, {left:.0f} s left")


def in_words(count: float) -> str:
    """A number of bytes for people."""
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.1f} GB"
