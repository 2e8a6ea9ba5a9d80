"""Writing files so that a crash leaves either the old one or the new one, whole; reading files that may be anything."""

from __future__ import annotations

import errno
import os
import re
import stat
from pathlib import Path

_UNFINISHED = ".part"
_LEFTOVER = re.compile(r"\..+\.\d+\.part", re.DOTALL)


def sync(path: Path) -> None:
    """Flush a file or folder to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_durably(path: Path, data: bytes) -> None:
    """Write beside, flush to disk, rename, flush the folder.

    Raises:
        OSError: disk full, read-only, ..., naming the file; the old one is still there, whole.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}{_UNFINISHED}")
    try:
        with temporary.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from error
    sync(path.parent)


def leftovers(folder: Path) -> list[Path]:
    """What write_durably left in a folder, and in those below it, when it was killed."""
    return [path for path in folder.rglob(f".*{_UNFINISHED}") if _LEFTOVER.fullmatch(path.name)]


def open_regular(path: Path) -> int:
    """Open a file for reading; returns its descriptor.

    Raises:
        OSError: it cannot be opened, or is a folder, a pipe or a device: reading those could wait for ever.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return descriptor


def read_file(path: Path, most: int) -> bytes:
    """All bytes of a file that must not have more than `most`.

    Raises:
        OSError: as open_regular, or it is larger.
    """
    with open(open_regular(path), "rb", buffering=0) as stream:
        size = os.fstat(stream.fileno()).st_size
        if size > most:
            raise OSError(errno.EFBIG, f"{size:,} bytes, more than the {most:,} that are possible", str(path))
        return stream.readall()
