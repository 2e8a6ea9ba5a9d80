"""No process outlives the one that started it: the kernel ends it, however its parent ends."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
from collections.abc import Sequence
from functools import partial
from typing import Any

from mr.stopping import held

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_libc = ctypes.CDLL(None)


def end_with_parent(parent: int, number: int) -> None:
    """Called in a process that was just forked: let the kernel send it a signal when its parent is gone.

    The kernel takes the end of the thread that forked for the end of the parent.

    Args:
        parent: process id.
        number: of the signal.
    """
    _libc.prctl(_PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:  # it was gone before that was asked of the kernel
        os._exit(1)


def start(command: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
    """Start a program that ends, by SIGTERM so that it can tidy up, with this process.

    Args:
        command: words.
        options: of subprocess.Popen.

    Raises:
        OSError: it cannot be started.
    """
    with held():
        return subprocess.Popen(command, preexec_fn=partial(end_with_parent, os.getpid(), signal.SIGTERM), **options)
