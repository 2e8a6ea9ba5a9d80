"""Where a cluster keeps files: HDFS and what else `hadoop fs` knows, S3, or a folder that all hosts share.

mrjob's own filesystems say how each is reached (hadoop binary, credentials, endpoint). Their `cat` is not used: it
decompresses by the file's name, takes the first member of a .gz for the whole, and starts a JVM per file.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from mrjob.parse import is_s3_uri, is_uri

COPY_BYTES = 1 << 20
# perms, replicas, owner, group, bytes, date, time, path
_LISTED = re.compile(r"([d-])\S*\s+\S+\s+.*?\s(\d+)\s+\d{4}-\d\d-\d\d\s+\d\d:\d\d(?::\d\d)?\s+(.+)")
_NOT_THERE = re.compile(r"No such file or directory\s*$", re.MULTILINE)


class Store(Protocol):
    """One kind of place for files. Paths and patterns (with * and ?) are plain ones or URIs."""

    def sizes(self, pattern: str) -> dict[str, int]:
        """Path and size in bytes of all files that match; folders are no files. Raises OSError."""

    def put(self, files: Sequence[Path], folder: str) -> None:
        """Copy local files into a new folder. Raises OSError."""

    def get(self, files: Mapping[str, int], folder: Path) -> None:
        """Copy files of these sizes into a local folder; each appears whole or not at all. Raises OSError."""

    def open(self, path: str, size: int) -> BinaryIO:
        """Read a file of this size, as its bytes are. Reading raises OSError where fewer or more bytes come."""

    def remove(self, folder: str) -> None:
        """Remove a folder with everything in it, if it is there. Raises OSError."""


def store_of(filesystem: Any, path: str) -> Store:
    """The store of a path.

    Args:
        filesystem: `fs` of an mrjob runner.
        path: a plain path, or a URI.

    Raises:
        OSError: nothing is known that reads such URIs.
    """
    if not is_uri(path):
        return _SharedFolder()
    s3 = getattr(filesystem, "s3", None)
    if s3 is not None and is_s3_uri(path):
        return _S3(s3)
    hadoop = getattr(filesystem, "hadoop", None)
    if hadoop is None:
        raise OSError(f"{path}: this runner reads s3:// alone")
    return _Hadoop(hadoop)


def join(folder: str, name: str) -> str:
    """A file or folder in a folder."""
    return f"{folder.rstrip('/')}/{name}"


class _SharedFolder:
    def sizes(self, pattern: str) -> dict[str, int]:
        folder, name = os.path.split(pattern)
        found = (path for path in Path(folder).glob(name) if path.is_file())
        return {str(path): path.stat().st_size for path in found}

    def put(self, files: Sequence[Path], folder: str) -> None:
        Path(folder).mkdir(parents=True)
        for path in files:
            shutil.copyfile(path, Path(folder, path.name))

    def get(self, files: Mapping[str, int], folder: Path) -> None:
        for path in files:
            arriving = folder / f".{Path(path).name}"
            shutil.move(path, arriving)
            arriving.rename(folder / Path(path).name)

    def open(self, path: str, size: int) -> BinaryIO:
        return _opened(path, size, Path(path).open("rb"))

    def remove(self, folder: str) -> None:
        shutil.rmtree(folder, ignore_errors=True)


class _Hadoop:
    """The command `hadoop fs`, a JVM per call: few calls, for many files each."""

    def __init__(self, filesystem: Any) -> None:
        self._command = [*filesystem.get_hadoop_bin(), "fs"]

    def sizes(self, pattern: str) -> dict[str, int]:
        listed = self._run("-ls", "-d", pattern, may_be_missing=True)
        found = filter(None, map(_LISTED.fullmatch, listed.splitlines()))
        return {path: int(size) for kind, size, path in (entry.groups() for entry in found) if kind == "-"}

    def put(self, files: Sequence[Path], folder: str) -> None:
        self._run("-mkdir", "-p", folder)
        for part in _portions(files):
            self._run("-put", *map(str, part), folder)

    def get(self, files: Mapping[str, int], folder: Path) -> None:
        # It writes to NAME._COPYING_, compares checksums and renames.
        for part in _portions(list(files)):
            self._run("-get", *part, str(folder))

    def open(self, path: str, size: int) -> BinaryIO:
        process = subprocess.Popen(
            [*self._command, "-cat", path], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        assert process.stdout is not None, "a pipe was asked for"

        def end() -> None:
            process.kill()
            process.wait()

        return _opened(path, size, process.stdout, end)

    def remove(self, folder: str) -> None:
        self._run("-rm", "-r", "-f", "-skipTrash", folder)

    def _run(self, *arguments: str, may_be_missing: bool = False) -> str:
        done = subprocess.run([*self._command, *arguments], stdin=subprocess.DEVNULL, capture_output=True, check=False)
        said = done.stderr.decode("utf-8", "replace")
        if done.returncode and not (may_be_missing and _NOT_THERE.search(said)):
            told = [line.strip() for line in said.splitlines() if line.strip()]
            what = " ".join([*self._command, *arguments[:2]])
            raise OSError(f"{what} failed: {told[-1] if told else f'status {done.returncode}'}")
        return done.stdout.decode("utf-8", "surrogateescape")


class _S3:
    """S3 by boto3, which mrjob hands out; what it raises becomes OSError."""

    def __init__(self, filesystem: Any) -> None:
        self._fs = filesystem

    def sizes(self, pattern: str) -> dict[str, int]:
        found = _told(pattern, lambda: {uri: int(key.size) for uri, key in self._fs._ls(pattern)})
        return {uri: size for uri, size in found.items() if uri.count("/") == pattern.count("/")}

    def put(self, files: Sequence[Path], folder: str) -> None:
        _told(folder, lambda: self._fs.mkdir(folder))
        for path in files:
            _told(folder, partial(self._fs.put, str(path), join(folder, path.name)))

    def get(self, files: Mapping[str, int], folder: Path) -> None:
        for path, size in files.items():
            name = path.rpartition("/")[2]
            arriving = folder / f".{name}"
            with self.open(path, size) as stream, arriving.open("wb") as file:
                shutil.copyfileobj(stream, file, COPY_BYTES)
            arriving.rename(folder / name)

    def open(self, path: str, size: int) -> BinaryIO:
        body = _told(path, lambda: self._fs._get_s3_key(path).get()["Body"])
        return _opened(path, size, body)

    def remove(self, folder: str) -> None:
        _told(folder, lambda: self._fs.rm(join(folder, "")))


def _told(path: str, call: Callable[[], Any]) -> Any:
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        return call()
    except (BotoCoreError, ClientError) as error:
        raise OSError(f"{path}: {error}") from None


def _portions(items: Sequence[Any], count: int = 500) -> list[Sequence[Any]]:
    """A command line is bounded too."""
    return [items[start : start + count] for start in range(0, len(items), count)]


def _opened(path: str, size: int, stream: Any, end: Callable[[], None] = lambda: None) -> BinaryIO:
    return io.BufferedReader(_Checked(path, size, stream, end), COPY_BYTES)


class _Checked(io.RawIOBase):
    """Bytes as they come, with their number checked at the end."""

    def __init__(self, path: str, size: int, stream: Any, end: Callable[[], None]) -> None:
        self._path, self._size, self._stream, self._end = path, size, stream, end
        self._position = 0

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._stream.read(len(buffer))
        except Exception as error:  # of whatever library reads the network
            raise OSError(f"{self._path}: broke off after {self._position:,} bytes ({error})") from None
        self._position += len(data)
        if self._position > self._size or (not data and self._position < self._size):
            raise OSError(f"{self._path}: {self._position:,} bytes came, {self._size:,} were announced")
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._stream.close()
            self._end()
        super().close()


@dataclass(frozen=True)
class RemoteFile:
    """An input file in a store, with what ingest needs of a Path."""

    uri: str
    size: int
    """bytes"""
    store: Store

    @property
    def name(self) -> str:
        """Its base name."""
        return self.uri.rpartition("/")[2]

    def open(self, mode: str = "rb") -> BinaryIO:
        """Read it, as its bytes are."""
        assert mode == "rb", "nothing is written there"
        return self.store.open(self.uri, self.size)

    def stat(self) -> os.stat_result:
        """Its size alone."""
        return os.stat_result((0, 0, 0, 0, 0, 0, self.size, 0, 0, 0))

    def __str__(self) -> str:
        return self.uri


Input = Path | RemoteFile
"""a review file"""
