"""Numbered line shards, the one form of input that the jobs read.

A shard's line is `file \\t line \\t record`: exact file and line numbers survive any runner, a big .gz is shared
between cores, and an element of a JSON array or a record of a CSV file is a record like any line. Records that a Hadoop
or Spark text reader would change (invalid UTF-8, a carriage return inside) travel as base64, marked by a `b` before the
line number; for what is known to be malformed already the reason travels, marked by an `x`.
"""

from __future__ import annotations

import binascii
import json
from pathlib import Path
from typing import BinaryIO

from mr.review import Malformed

_BUFFER_BYTES = 1 << 20


def encode_record(file: int, line: int, record: bytes | Malformed) -> bytes:
    """One shard line, with its line end."""
    if isinstance(record, Malformed):
        reason = json.dumps([record.kind, record.detail, record.start]).encode()
        return b"%d\tx%d\t%s\n" % (file, line, reason)
    if b"\r" in record or not _is_utf8(record):
        return b"%d\tb%d\t%s\n" % (file, line, binascii.b2a_base64(record, newline=False))
    return b"%d\t%d\t%s\n" % (file, line, record)


def decode_record(shard_line: bytes) -> tuple[int, int, bytes | Malformed]:
    """The reverse of encode_record: (file, line number, record)."""
    file, line, record = shard_line.split(b"\t", 2)
    if line.isdigit():
        return int(file), int(line), record
    if line.startswith(b"b"):
        return int(file), int(line[1:]), binascii.a2b_base64(record)
    return int(file), int(line[1:]), Malformed(*json.loads(record))


def _is_utf8(record: bytes) -> bool:
    if record.isascii():
        return True
    try:
        record.decode()
    except UnicodeDecodeError:
        return False
    return True


class ShardWriter:
    """Writes lines to NAME-00000, NAME-00001, ... and begins a new one when one is full. Use it as a context manager.

    Args:
        folder: for the shards.
        name: how their names begin.
        shard_bytes: a shard is full with.
    """

    def __init__(self, folder: Path, name: str, shard_bytes: int) -> None:
        self.bytes = 0
        self.shards: list[Path] = []
        self._folder, self._name, self._shard_bytes = folder, name, shard_bytes
        self._full_at = 0
        self._stream: BinaryIO | None = None

    def __enter__(self) -> ShardWriter:
        return self

    def write(self, line: bytes) -> None:
        """Write a line, its end included."""
        if self.bytes >= self._full_at:
            self.__exit__()
            self.shards.append(self._folder / f"{self._name}-{len(self.shards):05d}")
            self._stream = self.shards[-1].open("wb", buffering=_BUFFER_BYTES)
            self._full_at = self.bytes + self._shard_bytes
        assert self._stream is not None
        self._stream.write(line)
        self.bytes += len(line)

    def __exit__(self, *_: object) -> None:
        if self._stream:
            self._stream.close()
