"""Turns the input files into numbered line shards, several pieces at a time: the first stage of a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.sharedctypes import RawArray
from pathlib import Path
from typing import Any

from mr.errors import RunError, UsageError
from mr.pieces import Piece, PieceSource, expected_bytes, grouped
from mr.pool import ProcessKilled, run_here_or_there
from mr.progress import ticking
from mr.reading import is_table, read_records
from mr.review import Fields
from mr.shards import ShardWriter, encode_record

SHARD_BYTES = 64 << 20
# Per group: bytes read, records, bytes written. Workers are forks, so that they find it here; each group has places of
# its own, so that there is no lock which a killed worker could hold.
_done: Any = None
_READ, _RECORDS, _WRITTEN = range(3)


@dataclass
class Ingested:
    """What ingest made."""

    lines: list[int]
    """records per input file"""
    digests: list[str]
    """XXH3 of the bytes of each input file that is one piece"""
    bytes: int = 0
    """of the shards"""
    shards: list[Path] = field(default_factory=list)


def ingest(
    pieces: Sequence[Piece],
    folder: Path,
    fields: Fields,
    *,
    processes: int = 1,
    progress: Callable[[int, int, int], None] = lambda done, lines, size: None,
    shard_bytes: int | None = None,
) -> Ingested:
    """Write the shards of all files.

    Args:
        pieces: of all files, in their order.
        folder: an existing, empty folder.
        fields: where CSV files have text and rating.
        processes: at a time; with 1 this process does it.
        progress: called now and then with the bytes of the files read, the records and the bytes written so far.
        shard_bytes: a shard is full with; SHARD_BYTES if None.

    Raises:
        UsageError: a file cannot be read, is no text, has changed since it was looked at, its gzip data is damaged, or
            a CSV header lacks a column.
        RunError: a process was killed.
    """
    global _done
    for piece in pieces:
        if is_table(piece.path.name):
            # A header without the columns is told before hours of work.
            next(read_records(piece.path, fields), None)
    files = max((piece.file for piece in pieces), default=-1) + 1
    result = Ingested(lines=[0] * files, digests=[""] * files)
    groups = grouped(pieces, processes)
    # The largest first: one that begins last would be waited for.
    order = sorted(range(len(groups)), key=lambda at: -sum(map(expected_bytes, groups[at])))
    tasks = [partial(_write_group, at, groups[at], folder, fields, shard_bytes or SHARD_BYTES) for at in order]
    _done = done = RawArray("q", len(groups) * 3)
    try:
        with ticking(lambda: progress(*(sum(done[kind::3]) for kind in (_READ, _RECORDS, _WRITTEN)))):
            for written in run_here_or_there(tasks, processes):
                for number, records, digest in written.pieces:
                    result.lines[number] += records
                    result.digests[number] = digest
                result.shards += written.shards
    except ProcessKilled as error:
        raise RunError(
            f"{error}, while it read the input, perhaps for want of memory: run it again, with fewer --cores"
        ) from None
    finally:
        _done = None
    result.shards.sort()
    result.bytes = sum(done[_WRITTEN::3])
    return result


@dataclass(frozen=True)
class _Written:
    pieces: list[tuple[int, int, str]]
    """number of the file, records and digest of each"""
    shards: list[Path]


def _write_group(at: int, pieces: Sequence[Piece], folder: Path, fields: Fields, shard_bytes: int) -> _Written:
    found: list[tuple[int, int, str]] = []
    before = records = 0
    with ShardWriter(folder, f"shard-{at:05d}", shard_bytes) as writer:

        def tell(place: int) -> None:
            done = (before + place, sum(count for _, count, _ in found) + records, writer.bytes)
            _done[at * 3 : at * 3 + 3] = done

        for piece in pieces:
            source, records = PieceSource(piece), 0
            for count, line, record in read_records(source, fields, tell, piece.line):
                records = count
                writer.write(encode_record(piece.file, line, record))
            if piece.digest not in (None, source.digest()):
                raise UsageError(f"{piece.path}: changed while it was read; run it again when it is complete")
            found.append((piece.file, records, source.digest()))
            before, records = before + piece.size, 0
            tell(0)
    return _Written(found, writer.shards)
