"""A copy of a dataset on a host's own disk: verified, whole or not there, shared by the jobs of the host. No MPI.

    STAGE_DIR/<16 digits of the dataset's digest>/          a copy: it was renamed to this when it was whole
    STAGE_DIR/.<the same>.part/                             one that is being made, or was when its job was killed
    STAGE_DIR/.<the same>.lock                              held (flock) by the job that makes or checks the copy

The kernel gives the lock back however its holder ends: a .part whose lock is free is a leftover.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.bytes_shown import BytesShown, in_words
from native.files import open_regular, read_file, sync, write_durably
from native.format import (
    MANIFEST,
    MAX_MANIFEST_BYTES,
    VOCABULARY,
    DatasetError,
    entries_of,
    read_manifest,
)
from native.index import index_path, read_index

SPLITS = ("train", "validation")
"""what training reads"""
PIECE = 8 << 20
STALL_SECONDS = 300.0
"""another job that holds the lock and gets no further for so long is not waited for any more"""
TELL_SECONDS = 30.0
_LEFTOVER = re.compile(r"\.[0-9a-f]{16}\.part")


@dataclass(frozen=True)
class Copy:
    """A copy that can be read."""

    path: Path
    copied: int
    """bytes; 0 when there was one already"""
    seconds: float


@dataclass(frozen=True)
class _File:
    path: str
    size: int
    digest: str


class NodeCopy:
    """The copy of one dataset in one folder of this host.

    Args:
        data: the dataset.
        stage_dir: the folder; it exists.
        say: takes lines for people.
        shown: whether this host shows its progress.

    Raises:
        DatasetError: there is no usable dataset.
    """

    def __init__(self, data: Path, stage_dir: Path, say: Callable[[str], None], shown: bool) -> None:
        self._data, self._stage_dir, self._say, self._shown = data, stage_dir, say, shown
        self._manifest = read_manifest(data)
        name = self._manifest["digest"][:16]
        self.path = stage_dir / name
        self._unfinished, self._lock = stage_dir / f".{name}.part", stage_dir / f".{name}.lock"

    def make(self) -> Copy:
        """Make the copy, or check the one that is there.

        Raises:
            DatasetError: the original is damaged.
            OSError: there can be no copy here: no space, no permission, a job that holds the lock and hangs.
        """
        began = time.monotonic()
        if self.path.exists() and self.path.samefile(self._data):
            return Copy(self._data, 0, 0.0)
        with self._locked() as alive:
            _clear(self._unfinished)
            _clear_leftovers(self._stage_dir)
            files, indexes = self._files(), self._indexes()
            if self.path.exists():
                problem = self._problem(files, alive)
                if problem is None:
                    self._renew(indexes)
                    return Copy(self.path, 0, time.monotonic() - began)
                self._say(f"warning: {self.path}: this copy of {self._data} {problem}; it is made again")
                self.path.rename(self._unfinished)
                _clear(self._unfinished)
            try:
                self._copy(files, indexes, alive)
            except BaseException:
                shutil.rmtree(self._unfinished, ignore_errors=True)
                raise
        return Copy(self.path, sum(file.size for file in files), time.monotonic() - began)

    def _files(self) -> list[_File]:
        parts = [entry for split in SPLITS for entry in entries_of(self._manifest["parts"], split)]
        named = [(VOCABULARY, self._manifest["vocabulary"]["digest"])]
        named += [(entry["path"], entry["digest"]) for entry in parts]
        return [_File(path, (self._data / path).stat().st_size, digest) for path, digest in named]

    def _indexes(self) -> dict[str, bytes | None]:
        """Content of each part's index file, verified; None where the part has none."""
        found: dict[str, bytes | None] = {}
        buckets, chunk_rows = len(self._manifest["bucket_bounds"]), self._manifest["chunk_rows"]
        for split in SPLITS:
            for entry in entries_of(self._manifest["parts"], split):
                part = self._data / entry["path"]
                whole = read_index(part, buckets, chunk_rows, entry["index_digest"]) is not None
                path = index_path(part)
                found[str(path.relative_to(self._data))] = path.read_bytes() if whole else None
        return found

    def _copy(self, files: list[_File], indexes: dict[str, bytes | None], alive: Callable[[], None]) -> None:
        manifest = read_file(self._data / MANIFEST, MAX_MANIFEST_BYTES)
        content = {MANIFEST: manifest, **{path: data for path, data in indexes.items() if data is not None}}
        self._check_space([*(file.size for file in files), *map(len, content.values())])
        for split in SPLITS:
            (self._unfinished / split).mkdir(parents=True)
        with BytesShown(f"copying {self._data}", sum(file.size for file in files), self._shown, self._say) as progress:
            for file in files:
                with (self._unfinished / file.path).open("xb") as stream:

                    def take(piece: memoryview, stream: Any = stream) -> None:
                        stream.write(piece)
                        progress.add(len(piece))
                        alive()

                    digest = _digest(self._data / file.path, take)
                    stream.flush()
                    os.fsync(stream.fileno())
                if digest != file.digest:
                    raise DatasetError(
                        f"{self._data / file.path}: does not fit its digest in {MANIFEST}: the file was changed or "
                        "damaged; copy it again or make the dataset again"
                    )
        for path, data in content.items():
            write_durably(self._unfinished / path, data)
        if read_manifest(self._unfinished)["digest"] != self._manifest["digest"]:
            raise DatasetError(f"{self._data / MANIFEST}: was changed while the dataset was copied; start again")
        for folder in (*(self._unfinished / split for split in SPLITS), self._unfinished):
            sync(folder)
        self._unfinished.rename(self.path)
        sync(self._stage_dir)

    def _check_space(self, sizes: list[int]) -> None:
        found = os.statvfs(self._stage_dir)
        block, free = found.f_frsize, found.f_bavail * found.f_frsize
        needed = sum(-(-size // block) * block for size in sizes) + (1 + len(SPLITS)) * block
        if free < needed:
            raise OSError(
                errno.ENOSPC, f"{in_words(needed)} are needed, {in_words(free)} are free", str(self._stage_dir)
            )

    def _problem(self, files: list[_File], alive: Callable[[], None]) -> str | None:
        """What is wrong with the copy that is there, in words; None when nothing is."""
        try:
            if read_manifest(self.path)["digest"] != self._manifest["digest"]:
                return "is one of another dataset"
            for file in files:
                if (self.path / file.path).stat().st_size != file.size:
                    return f"has another size: {file.path}"
            with BytesShown(f"checking {self.path}", sum(file.size for file in files), self._shown, self._say) as shown:
                for file in files:

                    def take(piece: memoryview) -> None:
                        shown.add(len(piece))
                        alive()

                    if _digest(self.path / file.path, take) != file.digest:
                        return f"is damaged: {file.path}"
        except (DatasetError, OSError) as error:
            return f"is not usable ({error})"
        return None

    def _renew(self, indexes: dict[str, bytes | None]) -> None:
        """Give a copy the index files that the original has now."""
        for path, data in indexes.items():
            if data is None:
                (self.path / path).unlink(missing_ok=True)
                continue
            try:
                same = (self.path / path).read_bytes() == data
            except FileNotFoundError:
                same = False
            if not same:
                write_durably(self.path / path, data)

    @contextmanager
    def _locked(self) -> Iterator[Callable[[], None]]:
        """Hold the lock; gives a function that tells waiting jobs, now and then, that this one gets on."""
        descriptor = os.open(self._lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            self._wait_for_lock(descriptor)
            told = 0.0

            def alive() -> None:
                nonlocal told
                if time.monotonic() - told >= 1.0:
                    told = time.monotonic()
                    os.utime(descriptor)

            alive()
            yield alive
        finally:
            os.close(descriptor)

    def _wait_for_lock(self, descriptor: int) -> None:
        seen, since, told = 0, time.monotonic(), 0.0
        while not _take(descriptor):
            now, changed = time.monotonic(), os.fstat(descriptor).st_mtime_ns
            if changed != seen:
                seen, since = changed, now
            if now - since > STALL_SECONDS:
                raise TimeoutError(
                    errno.ETIMEDOUT,
                    f"another job holds it and has got no further for {STALL_SECONDS:.0f} s",
                    str(self._lock),
                )
            if now - told >= TELL_SECONDS:
                told = now
                self._say(f"waiting for another job on this host, which copies or checks {self.path}")
            time.sleep(0.1)


def _take(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _clear(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _clear_leftovers(stage_dir: Path) -> None:
    """Remove unfinished copies of other datasets whose jobs are gone, for the space."""
    for folder in stage_dir.glob(".*.part"):
        if not _LEFTOVER.fullmatch(folder.name):
            continue
        with suppress(OSError):  # another user's, for one
            descriptor = os.open(folder.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                if _take(descriptor):
                    shutil.rmtree(folder)
            finally:
                os.close(descriptor)


def _digest(path: Path, take: Callable[[memoryview], None]) -> str:
    """SHA-256 of a file's bytes, each handed on once."""
    digest, buffer = hashlib.sha256(), memoryview(bytearray(PIECE))
    with open(open_regular(path), "rb", buffering=0) as stream:
        while count := stream.readinto(buffer):
            digest.update(buffer[:count])
            take(buffer[:count])
    return digest.hexdigest()
