"""The last step: from the records of the encode job to the parts of the dataset, several at a time.

    record files --sorted where they are not, counted--> where each part's rows begin in each file
    each part: its records merged --> rows --> a file under another name, flushed, renamed --> told in unfinished.json

A part that stands there, whole, is not written again. The manifest comes last, and with it unfinished.json goes.
"""

from __future__ import annotations

import binascii
import json
from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing.sharedctypes import RawArray
from pathlib import Path
from typing import Any

import numpy as np

from mr.errors import RunError
from mr.pool import ProcessKilled, run_here_or_there
from mr.progress import ticking
from mr.records import decode_ids
from mr.sorted_records import IDS, STAR, Counts, SortedRecords, arranged
from native.files import leftovers, write_durably
from native.format import QUARANTINE_FILE, UNFINISHED, VOCABULARY, DatasetError, file_digest
from native.index import index_path
from native.part_writer import Layout, Part, PartWriter
from native.text import SPLITS, UNKNOWN_ID
from native.writer import remove_dataset

# Rows written of each part. Workers are forks, so that they find it here; each part has a place of its own, so that
# there is no lock which a killed worker could hold.
_rows_done: Any = None

Packed = dict[str, list[dict[str, Any]]]
"""per split, for each part: what PartWriter.close returns, and "unknown", its tokens that are unknown words"""


def pack(
    files: Sequence[Path],
    folder: Path,
    layout: Layout,
    *,
    work: Path,
    key: str,
    processes: int,
    progress: Callable[[int], None] = lambda rows: None,
) -> Packed:
    """Write all parts of a dataset that do not stand there yet; the dataset depends on the set of records alone.

    Until native.writer.finish_dataset the folder is no dataset. What a call leaves that was cut off or failed is gone
    on with by the next one with the same key; whoever will not go on removes it with native.writer.remove_dataset.

    Args:
        files: output of the encode job, in any order, each in any order.
        folder: of the dataset; new, empty, or left by an unfinished call.
        layout: of the dataset.
        work: folder for sorted copies of files that are not sorted; the caller removes it.
        key: names the records and the layout: what a call with another key left is removed.
        processes: at a time, each with some 100 MB of memory; with 1 this process does it.
        progress: called now and then with the rows so far.

    Raises:
        RunError: rows are missing or too many, a record came twice or is none, or a process was killed.
        DatasetError: the folder holds something else, or rows do not fit the layout.
        OSError: disk full, ...; it names the file.
    """
    global _rows_done
    journal = _Journal(folder, key)
    planned = [part for split in SPLITS for part in layout.parts(split)]
    try:
        stands = run_here_or_there(
            [partial(_stands, folder, part.path, journal.done.get(part.path)) for part in planned], processes
        )
        journal.keep({path for path, whole in stands if whole}, folder)
        todo = [part for part in planned if part.path not in journal.done]
        if todo:
            source = _source(files, layout, work, processes)
            before = sum(part["entry"]["rows"] for part in journal.done.values())
            _rows_done = done = RawArray("q", len(todo))
            tasks = [partial(_write_part, folder, layout, part, source, at) for at, part in enumerate(todo)]
            with ticking(lambda: progress(before + sum(done))):
                for path, closed in run_here_or_there(tasks, processes):
                    journal.add(path, closed)
    except ProcessKilled:
        raise RunError(
            "a process that wrote the dataset was killed, perhaps for want of memory; the parts that stand are kept: "
            "run the same command again, with fewer --cores"
        ) from None
    finally:
        _rows_done = None
    return {split: [journal.done[part.path] for part in layout.parts(split)] for split in SPLITS}


def _stands(folder: Path, path: str, closed: dict[str, Any] | None) -> tuple[str, bool]:
    """Whether a part is what the journal says: a disk may have lost it since."""
    if closed is None or not (folder / path).is_file() or not index_path(folder / path).is_file():
        return path, False
    return path, file_digest(folder / path) == closed["entry"]["digest"]


def _source(files: Sequence[Path], layout: Layout, work: Path, processes: int) -> SortedRecords:
    """All records, sorted and counted; they must be the layout's rows."""
    tasks = [partial(arranged, path, work) for path in files if path.stat().st_size]
    paths: list[Path] = []
    counts: Counts = {}
    for path, found in run_here_or_there(tasks, processes):
        paths.append(path)
        for place, slices in found.items():
            counts[place] = counts.get(place, 0) + slices
    source = SortedRecords(sorted(paths), counts)
    came = {place: int(slices.sum()) for place, slices in counts.items()}
    expected = {
        _place(split, bucket): rows for split in SPLITS for bucket, rows in enumerate(layout.rows[split]) if rows
    }
    for place in sorted(came.keys() | expected.keys()):
        if came.get(place, 0) > expected.get(place, 0):
            source.check_once(place)  # which names the cause, where it is this
        if came.get(place) != expected.get(place):
            raise RunError(
                f"{SPLITS[int(place[:1])] if int(place[:1]) < len(SPLITS) else place[:1].decode()}, bucket "
                f"{int(place[1:])}: {came.get(place, 0)} encoded reviews came, {expected.get(place, 0)} were counted; "
                "no dataset was written: this is an error in the program, please report it"
            )
    return source


def _place(split: str, bucket: int) -> bytes:
    return b"%d%02d" % (SPLITS.index(split), bucket)


def _write_part(folder: Path, layout: Layout, part: Part, source: SortedRecords, at: int) -> tuple[str, dict[str, Any]]:
    unknown = 0
    writer = PartWriter(folder, layout, part)
    for bucket, (first, number) in enumerate(zip(part.first, part.rows, strict=True)):
        for lines in source.rows(_place(part.split, bucket), first, number):
            tokens, lengths, stars = _rows(lines, layout.bounds[bucket], layout.token_type)
            layout.check_rows(bucket, tokens, lengths, stars)
            writer.take(bucket, tokens, lengths, stars)
            unknown += int(np.count_nonzero(tokens == UNKNOWN_ID))
            _rows_done[at] += len(lines)
    return part.path, {**writer.close(), "unknown": unknown}


def _rows(lines: Sequence[bytes], bound: int, token_type: np.dtype[Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens [n, bound], lengths [n] and stars [n] of records."""
    try:
        encoded = [decode_ids(line[IDS:]) for line in lines]
    except binascii.Error as error:
        raise RunError(f"a record's ids are no base64 ({error}); no dataset was written: please report it") from None
    width = bound * token_type.itemsize
    sizes = np.fromiter(map(len, encoded), np.int64, len(encoded))
    if (sizes > width).any() or (sizes % token_type.itemsize).any():
        raise RunError(f"a record has not 1 to {bound} tokens; no dataset was written: please report it")
    tokens = np.frombuffer(b"".join([row.ljust(width, b"\0") for row in encoded]), token_type).reshape(-1, bound)
    lengths = (sizes // token_type.itemsize).astype(np.uint16)
    return tokens, lengths, np.frombuffer(bytes([line[STAR] for line in lines]), np.uint8) - np.uint8(ord("0"))


class _Journal:
    """Which parts stand in the folder, whole.

    Raises:
        DatasetError: the folder holds something that is not ours.
    """

    def __init__(self, folder: Path, key: str) -> None:
        self._path, self._key = folder / UNFINISHED, key
        folder.mkdir(parents=True, exist_ok=True)
        for path in leftovers(folder):
            path.unlink()
        begun = self._path.exists()
        ours = {*SPLITS, UNFINISHED, QUARANTINE_FILE, VOCABULARY} if begun else set()
        if {path.name for path in folder.iterdir()} - ours:
            raise DatasetError(f"{folder}: not empty; name a new folder, nothing is overwritten")
        self.done: dict[str, dict[str, Any]] = self._read() if begun else {}
        if not self.done:
            remove_dataset(folder)
        self._write()

    def _read(self) -> dict[str, dict[str, Any]]:
        try:
            known = json.loads(self._path.read_text())
            return dict(known["parts"]) if known["key"] == self._key else {}
        except (ValueError, TypeError, KeyError):
            return {}  # damaged: everything is written anew

    def keep(self, paths: set[str], folder: Path) -> None:
        """Forget and remove all others."""
        for split in SPLITS:
            for path in (folder / split).glob("*"):
                if f"{split}/{path.with_suffix('.h5').name}" not in paths:
                    path.unlink()
        self.done = {path: closed for path, closed in self.done.items() if path in paths}
        self._write()

    def add(self, path: str, closed: dict[str, Any]) -> None:
        """A part was written and flushed."""
        self.done[path] = closed
        self._write()

    def _write(self) -> None:
        write_durably(self._path, json.dumps({"key": self._key, "parts": self.done}).encode())
