"""The last step: from the sorted records of the encode job to the parts of the dataset, several at a time.

    record files --count--> records per place and slice of digests --> where each part's rows begin in each file
    each part: slices merged --> rows --> a file under another name, flushed, renamed --> an entry in unfinished.json

A part that stands there is not written again. The manifest comes last, and with it unfinished.json goes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from mr.errors import RunError
from mr.pool import run_tasks
from mr.progress import ticking
from mr.records import decode_ids, parts
from mr.sorted_records import SortedRecords, count_slices
from native.files import write_durably
from native.format import UNFINISHED
from native.part_writer import Layout, Part, PartWriter
from native.text import SPLITS, UNKNOWN_ID
from native.writer import remove_dataset

_STAR = ord("0")
# Workers are forks, so that they find it here: rows written by all of them.
_rows_done: Any = None

Packed = dict[str, list[dict[str, Any]]]
"""per split, for each part: what PartWriter.close returns, and "unknown", its tokens that are unknown words"""


def pack(
    records: Path,
    folder: Path,
    layout: Layout,
    *,
    key: str,
    processes: int,
    progress: Callable[[int], None] = lambda rows: None,
) -> Packed:
    """Write all parts of a dataset that do not stand there yet.

    Args:
        records: output folder of the encode job, each file sorted.
        folder: of the dataset; new, empty, or left by a call with the same key.
        layout: of the dataset.
        key: names the call: parts of another one are written anew.
        processes: at a time; with 1 this process does it.
        progress: called now and then with the rows so far.

    Raises:
        RunError: the records are not sorted, one came twice, or a process was killed.
    """
    global _rows_done
    folder.mkdir(parents=True, exist_ok=True)
    journal = _Journal(folder, key)
    todo = [part for split in SPLITS for part in layout.parts(split) if part.path not in journal.done]
    _rows_done = done = get_context("fork").Value("q", 0)
    before = sum(part["entry"]["rows"] for part in journal.done.values())
    files = [path for path in parts(records) if path.stat().st_size]
    try:
        counts: dict[bytes, np.ndarray] = {}
        for found in _run([partial(count_slices, path) for path in files] if todo else [], processes):
            for place, slices in found.items():
                counts[place] = counts.get(place, 0) + slices
        if todo:
            _check(counts, layout)
        source = SortedRecords(files, counts)
        with ticking(lambda: progress(before + done.value)):
            for path, closed in _run([partial(_write_part, folder, layout, part, source) for part in todo], processes):
                journal.add(path, closed)
    except BrokenProcessPool:
        raise RunError(
            "a process that wrote the dataset was killed, perhaps for want of memory; the parts that stand are kept: "
            "run the same command again, with fewer --cores"
        ) from None
    finally:
        _rows_done = None
    return {split: [journal.done[part.path] for part in layout.parts(split)] for split in SPLITS}


def _run(tasks: Sequence[Callable[[], Any]], processes: int) -> Iterator[Any]:
    if processes > 1 and len(tasks) > 1:
        return run_tasks(tasks, min(processes, len(tasks)))
    return (task() for task in tasks)


def _check(counts: dict[bytes, np.ndarray], layout: Layout) -> None:
    """All rows must be there, and no others."""
    found = {place: int(slices.sum()) for place, slices in counts.items()}
    expected = {
        _place(split, bucket): rows for split in SPLITS for bucket, rows in enumerate(layout.rows[split]) if rows
    }
    if found != expected:
        both = sorted(found.keys() | expected.keys())
        wrong = next(place for place in both if found.get(place) != expected.get(place))
        raise RunError(
            f"{SPLITS[int(wrong[:1])]}, bucket {int(wrong[1:])}: {found.get(wrong, 0)} encoded reviews came, "
            f"{expected.get(wrong, 0)} were counted; nothing was written: this is an error in the program, please "
            "report it"
        )


def _place(split: str, bucket: int) -> bytes:
    return b"%d%02d" % (SPLITS.index(split), bucket)


def _write_part(folder: Path, layout: Layout, part: Part, source: SortedRecords) -> tuple[str, dict[str, Any]]:
    writer = PartWriter(folder, layout, part)
    unknown = 0
    try:
        for bucket, (first, number) in enumerate(zip(part.first, part.rows, strict=True)):
            for lines in source.rows(_place(part.split, bucket), first, number):
                tokens, lengths, stars = _rows(lines, layout.bounds[bucket], layout.token_type)
                layout.check_rows(bucket, tokens, lengths, stars)
                writer.take(bucket, tokens, lengths, stars)
                unknown += int(np.count_nonzero(tokens == UNKNOWN_ID))
                with _rows_done.get_lock():
                    _rows_done.value += len(lines)
        return part.path, {**writer.close(), "unknown": unknown}
    except BaseException:
        writer.abort()
        raise


def _rows(lines: Sequence[bytes], bound: int, token_type: np.dtype[Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens [n, bound], lengths [n] and stars [n] of records."""
    values = [line[line.index(b"\t") + 1 :] for line in lines]
    encoded = [decode_ids(value[1:]) for value in values]
    width = bound * token_type.itemsize
    tokens = np.frombuffer(b"".join([row.ljust(width, b"\0") for row in encoded]), token_type).reshape(-1, bound)
    lengths = np.array([len(row) // token_type.itemsize for row in encoded], np.uint16)
    return tokens, lengths, np.array([value[0] - _STAR for value in values], np.uint8)


class _Journal:
    """Which parts stand in the folder, whole."""

    def __init__(self, folder: Path, key: str) -> None:
        self._path, self._key = folder / UNFINISHED, key
        self.done: dict[str, dict[str, Any]] = {}
        try:
            known = json.loads(self._path.read_text())
        except FileNotFoundError:
            known = {}
        if known.get("key") == key:
            self.done = known["parts"]
        elif known:
            remove_dataset(folder)
        self._write()

    def add(self, path: str, closed: dict[str, Any]) -> None:
        """A part was written and flushed."""
        self.done[path] = closed
        self._write()

    def _write(self) -> None:
        write_durably(self._path, json.dumps({"key": self._key, "parts": self.done}).encode())
