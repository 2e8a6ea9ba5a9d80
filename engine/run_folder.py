"""The folder that a run writes to: one run at a time, and not a dataset's."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

from engine.errors import UsageError
from native.files import write_durably
from native.format import MANIFEST

PATIENCE = 10.0
"""seconds in which a run that was ended may still be ending"""
_held: dict[Path, int] = {}
"""descriptors of the folders that this process has locked"""


def take_run_folder(folder: Path) -> None:
    """Make a folder where there is none, see that it can be written, and keep other processes from writing to it.

    The lock is the kernel's and goes with this process, however that ends. A file system without such locks on folders
    (NFS) gives none, and then nothing is kept. A process may take its own folder again.

    Raises:
        UsageError: it cannot be written, holds a dataset, or another process has taken it.
    """
    if (folder / MANIFEST).exists():
        raise UsageError(f"--out {folder}: holds a dataset; name a folder of its own for the run")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_durably(folder / ".writable", b"")
        (folder / ".writable").unlink()
        path = folder.resolve()
        if path not in _held:
            _held[path] = _lock(path)
    except BlockingIOError:
        raise UsageError(
            f"--out {folder}: another run writes there; wait for its end, or name another folder"
        ) from None
    except OSError as error:
        raise UsageError(f"--out {folder}: cannot be written ({error.strerror}); name another folder") from None


def give_run_folder_back(folder: Path) -> None:
    """Let other processes write to it; does nothing where it was not taken."""
    descriptor = _held.pop(folder.resolve(), None)
    if descriptor is not None:
        os.close(descriptor)


def _lock(path: Path) -> int:
    descriptor = os.open(path, os.O_RDONLY)
    until = time.monotonic() + PATIENCE
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > until:
                os.close(descriptor)
                raise
            time.sleep(0.1)
        except OSError:  # no such locks here
            return descriptor
        else:
            return descriptor
