"""The ASCII records that the jobs exchange, one `key \\t value` a line; the key's first letter tells the kind.

    r<digest>                   <stars> <words>           a distinct review, from clean
    <s><bb><digest>             <stars><ids in base64>    an encoded review, from encode; sorts as the dataset does
    w<word>                     <count>                   a word of the training split
    n<name>                     <count>                   a number to be summed
    q<file>:<line>              {"reason", "start"}       a malformed record; sorts by file and line

Words stay readable in ASCII: other characters are written as Python escapes, and no word holds a backslash.
"""

from __future__ import annotations

import binascii
import heapq
import json
from collections.abc import Iterator
from pathlib import Path

REVIEW, WORD, NUMBER, QUARANTINE = b"r", b"w", b"n", b"q"


def decode_words(value: bytes) -> list[str]:
    """The words of a text in ASCII (native.text.to_ascii)."""
    return value.decode("unicode_escape" if b"\\" in value else "ascii").split(" ")


def quarantine_key(file: int, line: int) -> bytes:
    """Key of a malformed record."""
    return b"q%06d:%012d" % (file, line)


def read_quarantine(key: bytes, value: bytes) -> tuple[int, int, str, str]:
    """(file, line, reason, start) of a malformed record."""
    file, line = key[1:].split(b":")
    record = json.loads(value)
    return int(file), int(line), record["reason"], record["start"]


def encode_ids(ids: bytes) -> bytes:
    """Token ids, little-endian integers of 2 or 4 bytes, as base64."""
    return binascii.b2a_base64(ids, newline=False)


def decode_ids(value: bytes) -> bytes:
    """The reverse of encode_ids."""
    return binascii.a2b_base64(value)


def parts(folder: Path) -> list[Path]:
    """The output files of a job."""
    return sorted(folder.glob("part-*"))


def merge_sorted(folder: Path, kind: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
    """Yield (key, value) of a job's output in the order of the keys, streaming; each part is sorted.

    Args:
        folder: the job's output.
        kind: only records whose keys start with it.

    Raises:
        ValueError: a part is not sorted.
    """
    previous = b""
    for line in heapq.merge(*(_lines(path, kind) for path in parts(folder))):
        key, value = line.split(b"\t", 1)
        if key < previous:
            raise ValueError(
                f"{folder}: the record {key!r} comes after {previous!r}: a part of the output is not sorted"
            )
        previous = key
        yield key, value.rstrip(b"\n")


def read_all(folder: Path, kind: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield (key without its letter, value) of one kind, in no particular order."""
    for path in parts(folder):
        for line in _lines(path, kind):
            key, value = line.rstrip(b"\n").split(b"\t", 1)
            yield key[len(kind) :], value


def _lines(path: Path, kind: bytes) -> Iterator[bytes]:
    with path.open("rb", buffering=1 << 18) as stream:
        for line in stream:
            if line.startswith(kind):
                yield line
