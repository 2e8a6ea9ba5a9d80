"""The stages of a run, each done once: what they left stands in the work folder, with the key of what it was made from.

    <work>/run.lock, <work>/<stage>.json (key, result), and the folders that the stage made

A stage's record is written when all that it made is whole, so that a run that was killed finds what stands and goes on.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from mr.errors import RunError, TooManyMalformed, UsageError
from mr.stopping import Stopped
from native.files import write_durably
from native.format import json_digest

VERSION = 1
"""of what stages leave; another one's are done again"""
STAGES = ("ingest", "clean", "count", "encode")
LOCK = "run.lock"
_LOCK_TRIES = 20


class Stages:
    """The work folder of a run, locked; used by open_stages."""

    def __init__(self, work: Path) -> None:
        self.work = work

    def key(self, stage: str, *parts: Any) -> str:
        """Names what a stage is made from: digests, settings, the keys of stages before, as plain values."""
        return json_digest([VERSION, stage, *parts])

    def result(self, stage: str, key: str) -> Any:
        """What a stage found that was made from the same and still stands; None: it is to be done."""
        try:
            record = json.loads((self.work / f"{stage}.json").read_text())
            return record["result"] if record["key"] == key else None
        except (OSError, ValueError, TypeError, KeyError):
            return None  # none, or damaged

    def begin(self, stage: str, *leftovers: str) -> None:
        """Remove what an unfinished or other run left of a stage."""
        (self.work / f"{stage}.json").unlink(missing_ok=True)
        for name in (stage, *leftovers):
            shutil.rmtree(self.work / name, ignore_errors=True)

    def end(self, stage: str, key: str, result: Any) -> None:
        """All that a stage made is whole: record it with what it found, a plain value other than None."""
        write_durably(self.work / f"{stage}.json", json.dumps({"key": key, "result": result}).encode())

    @property
    def any_done(self) -> bool:
        """Whether something stands that is worth keeping."""
        return any((self.work / f"{stage}.json").exists() for stage in STAGES)


@contextmanager
def open_stages(work: Path, keep: bool, clear: Callable[[Path], None]) -> Iterator[Stages]:
    """Make or find the work folder, and lock it.

    It is removed at the end; but it stays, and that is told, after a failure that the same command may go on from.

    Args:
        work: the folder.
        keep: it stays in any case.
        clear: called with the folder before it is removed.

    Raises:
        UsageError: it cannot be made, is none, or another run uses it.
    """
    with _locked(work):
        stages = Stages(work)
        stood = stages.any_done
        try:
            yield stages
        except BaseException as error:
            # Input that cannot be used leaves nothing; but what an earlier call did is not lost by a mistaken one.
            useless = isinstance(error, UsageError) and not isinstance(error, TooManyMalformed) and not stood
            if not keep and (useless or not stages.any_done):
                clear(work)
                shutil.rmtree(work, ignore_errors=True)
                raise
            kept = f"what was done is kept in {work} ({_size(work) / 1e6:,.1f} MB): the same command goes on from it"
            if isinstance(error, Stopped):
                raise Stopped(f"{error}; {kept}", error.status) from error
            if isinstance(error, (UsageError, RunError)):
                raise type(error)(f"{error}; {kept}") from error
            print(f"mr: {kept}", file=sys.stderr)
            raise
        if not keep:
            clear(work)
            shutil.rmtree(work, ignore_errors=True)


@contextmanager
def _locked(work: Path) -> Iterator[None]:
    """Make or find the work folder and hold its lock, which is also the sign that it is one."""
    if "#" in str(work) or "$" in str(work):
        raise UsageError(f"{work}: mrjob misreads '#' and '$' in a path; choose another --work or --out, or set TMPDIR")
    for _ in range(_LOCK_TRIES):
        try:
            work.mkdir(parents=True, exist_ok=True)
            if any(work.iterdir()) and not (work / LOCK).is_file():
                raise UsageError(f"{work}: holds something else than a run's work; move it, or choose another folder")
            lock = (work / LOCK).open("wb")
        except OSError as error:
            raise UsageError(
                f"{work}: no temporary folder can be made here ({error.strerror}); set TMPDIR or choose another --out"
            ) from None
        with lock:
            if _is_mine(lock, work / LOCK):
                yield
                return
        time.sleep(0.1)  # a run that was killed may have processes that are just ending
    raise UsageError(f"{work}: another run is at work here; wait for its end, or choose another --out")


def _is_mine(lock: BinaryIO, path: Path) -> bool:
    with suppress(BlockingIOError, FileNotFoundError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # The run that had it may have removed the folder in the meantime.
        return os.fstat(lock.fileno()).st_ino == path.stat().st_ino
    return False


@contextmanager
def only_writer(out: Path) -> Iterator[None]:
    """Hold the lock of a dataset's folder, which exists: runs with other work folders may have the same --out.

    Raises:
        UsageError: another run has it.
    """
    descriptor = os.open(out, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"{out}: another run is writing a dataset here; choose another --out") from None
        yield
    finally:
        os.close(descriptor)


def work_folder(out: Path) -> Path:
    """Where the work folder of a dataset is: beside it, or in $TMPDIR, always the same."""
    out = out.absolute()
    temporary = os.environ.get("TMPDIR")
    # What mrjob and Hadoop would misread in a name is left out of it.
    name = re.sub(r"[^\w.-]", "_", out.name, flags=re.ASCII)
    digest = hashlib.sha256(str(out).encode()).hexdigest()[:12]
    if temporary:
        return Path(temporary).absolute() / f"mr-{name}-{digest}.work"
    return out.with_name(f"{name}.work" if name == out.name else f"{name}-{digest}.work")


def _size(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())
