"""Examining a whole dataset: every byte against its digest, every chunk through the reader, all sums, stray files."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from native.batch import BatchBuffer
from native.files import open_regular
from native.format import (
    MANIFEST,
    QUARANTINE_FILE,
    VOCABULARY,
    DatasetError,
    entries_of,
    group_name,
    read_manifest,
    read_vocabulary,
)
from native.index import index_path
from native.parts import Parts, descriptor_digest
from native.reader import FAULTS, ChunkFault
from native.text import SPLITS


@dataclass
class Report:
    """What was found."""

    problems: list[str] = field(default_factory=list)
    """what is damaged or does not belong, a line each: file, place, what is wrong"""
    notes: list[str] = field(default_factory=list)
    """what is worth knowing without being wrong"""
    parts: int = 0
    rows: int = 0
    """rows read"""
    chunks: int = 0
    """chunks read"""
    bytes: int = 0
    """of all parts"""


@dataclass
class _Sums:
    """What the chunks of a split, or of a part, hold together."""

    rows: np.ndarray
    """per bucket"""
    stars: np.ndarray
    tokens: int = 0
    whole: bool = True
    """every chunk could be read"""


def verify(folder: Path, tell: Callable[[int, int], object] = lambda done, whole: None) -> Report:
    """Examine a dataset.

    Args:
        folder: the dataset's; its manifest is there.
        tell: called with the bytes examined so far, and those to examine.

    Returns:
        The report; it goes on after a problem where it can.
    """
    report = Report()
    try:
        manifest = read_manifest(folder)
    except DatasetError as error:
        report.problems.append(f"{error}; nothing else was examined, since this says what the rest must be")
        return report
    _Examination(folder, manifest, report, tell).run()
    return report


class _Examination:
    def __init__(
        self, folder: Path, manifest: Mapping[str, Any], report: Report, tell: Callable[[int, int], object]
    ) -> None:
        self._folder, self._manifest, self._report, self._tell = folder, manifest, report, tell
        self._bounds: list[int] = manifest["bucket_bounds"]
        self._chunk_rows: int = manifest["chunk_rows"]
        # Each part is read twice: for its digest, and chunk by chunk.
        self._done, self._whole = 0, 2 * sum(self._size(entry) for entry in manifest["parts"])

    def run(self) -> None:
        """Examine everything."""
        try:
            read_vocabulary(self._folder, self._manifest)
        except DatasetError as error:
            self._problem(str(error))
        for split in SPLITS:
            self._split(split)
        self._strays()

    def _problem(self, text: str) -> None:
        self._report.problems.append(text)

    def _advance(self, size: int) -> None:
        self._done = min(self._done + size, self._whole)
        self._tell(self._done, self._whole)

    def _size(self, entry: Mapping[str, Any]) -> int:
        try:
            return int((self._folder / entry["path"]).stat().st_size)
        except OSError:
            return 0

    def _split(self, split: str) -> None:
        whole = self._new_sums()
        for entry in entries_of(self._manifest["parts"], split):
            before = self._done
            found = self._part(entry)
            whole.whole &= found.whole
            whole.rows += found.rows
            whole.stars += found.stars
            self._advance(max(0, before + 2 * self._size(entry) - self._done))
        wanted = self._manifest["splits"][split]
        if not whole.whole:
            return
        where = f"{self._folder}/{split}"
        for name, have in (("bucket_rows", whole.rows), ("stars", whole.stars)):
            if have.tolist() != wanted[name]:
                self._problem(f"{where}: {name} are {have.tolist()}, {MANIFEST} says {wanted[name]}")

    def _new_sums(self) -> _Sums:
        return _Sums(np.zeros(len(self._bounds), np.int64), np.zeros(5, np.int64))

    def _part(self, entry: Mapping[str, Any]) -> _Sums:
        """Examine one part."""
        path, found = self._folder / entry["path"], self._new_sums()
        self._report.parts += 1
        intact = self._digest(path, entry)
        if intact is None or not (intact or index_path(path).exists()):
            found.whole = False  # without an index file nothing in a damaged part can be found
            return found
        if not index_path(path).exists():
            self._report.notes.append(
                f"{path}: has no {index_path(path).name}, so that whoever opens it must read all of it first; datasets "
                "written by this version have one"
            )
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            try:
                parts = Parts(self._folder, self._manifest, [entry])
            except DatasetError as error:
                self._problem(str(error))
                found.whole = False
                return found
        self._report.notes += sorted({f"{path}: {warning.message}" for warning in told})
        with closing(parts):
            self._chunks(parts, found)
        if found.whole and found.tokens != entry["tokens"]:
            self._problem(f"{path}: holds {found.tokens} tokens, {MANIFEST} says {entry['tokens']}")
        return found

    def _digest(self, path: Path, entry: Mapping[str, Any]) -> bool | None:
        """Whether a part's bytes fit its digest; None where it cannot be read."""
        try:
            descriptor = open_regular(path)
        except OSError as error:
            self._problem(f"{path}: {error.strerror}, but it is named in {MANIFEST}; copy or make the dataset again")
            return None
        try:
            self._report.bytes += os.fstat(descriptor).st_size
            digest = descriptor_digest(descriptor, self._advance)
        except OSError as error:
            self._problem(f"{path}: not readable ({error.strerror}); copy it again")
            return None
        finally:
            os.close(descriptor)
        if digest != entry["digest"]:
            self._problem(f"{path}: does not fit its digest in {MANIFEST}: it was changed or damaged; copy it again")
        return bool(digest == entry["digest"])

    def _chunks(self, parts: Parts, found: _Sums) -> None:
        """Read every chunk of a part."""
        reader = parts.make_reader([1] * len(self._bounds))
        faults: dict[tuple[int, int], list[int]] = {}
        for bucket, rows in enumerate(parts.rows):
            bound = self._bounds[bucket]
            buffer = BatchBuffer(min(rows, self._chunk_rows), bound)
            for chunk, start in enumerate(range(0, rows, self._chunk_rows)):
                numbers = np.arange(start, min(rows, start + self._chunk_rows))
                batch = buffer.view(len(numbers), bound)
                try:
                    reader.read(bucket, numbers, batch.tokens, batch.lengths, batch.stars)
                except ChunkFault as fault:
                    faults.setdefault((bucket, fault.args[1]), []).append(chunk)
                    continue
                except DatasetError as error:  # through libhdf5
                    self._problem(str(error))
                    found.whole = False
                    continue
                found.rows[bucket] += len(numbers)
                found.stars += np.bincount(batch.stars, minlength=6)[1:]
                found.tokens += int(batch.lengths.sum())
                self._report.chunks += 1
                self._report.rows += len(numbers)
                self._advance(int(parts.parts[0].buckets[bucket].sizes[chunk]))
        for (bucket, reason), chunks in sorted(faults.items()):
            found.whole = False
            place = f"/{group_name(self._bounds[bucket])}/tokens, {_ranges(chunks)}"
            self._problem(f"{parts.parts[0].path}: {place}: {FAULTS[reason]}")

    def _strays(self) -> None:
        """Files and folders that the manifest does not know."""
        paths = [self._folder / entry["path"] for entry in self._manifest["parts"]]
        known = {self._folder / name for name in (MANIFEST, VOCABULARY, QUARANTINE_FILE, *SPLITS)}
        known |= {*paths, *map(index_path, paths)}
        for top, folders, files in os.walk(self._folder):
            for name in sorted([*folders, *files]):
                if Path(top) / name not in known:
                    self._problem(f"{Path(top) / name}: does not belong to the dataset; move it elsewhere")
            folders[:] = sorted(name for name in folders if Path(top) / name in known)


def _ranges(chunks: list[int]) -> str:
    """Ascending chunk numbers in words: "chunk 3", "chunks 3, 5-8"."""
    runs = [[chunk for _, chunk in run] for _, run in groupby(enumerate(chunks), lambda pair: pair[1] - pair[0])]
    text = ", ".join(f"{run[0]}" if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
    return f"chunk {text}" if len(chunks) == 1 else f"chunks {text}"
