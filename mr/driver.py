"""Runs the stages one after the other. The driver holds counts and the vocabulary, never the reviews."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any, ClassVar

from mr.buckets import choose_bounds, padding_waste
from mr.clean import CleanJob
from mr.count import CountJob
from mr.encode import EncodeJob
from mr.errors import RunError, UsageError
from mr.ingest import Ingested, ingest
from mr.job import ReviewJob, run_job
from mr.options import Options
from mr.pack import pack
from mr.progress import Progress
from mr.records import NUMBER, QUARANTINE, WORD, decode_words, merge_sorted, read_all, read_quarantine
from mr.settings import Settings
from native.format import COUNT_FIELDS, QUARANTINE_FILE
from native.text import FIRST_WORD_ID, SPLITS
from native.writer import DatasetWriter


@dataclass(frozen=True)
class Counted:
    """What the count job found."""

    files: list[dict[str, Any]]
    """per input file: its name and COUNT_FIELDS"""
    counts: dict[str, int]
    """COUNT_FIELDS of all files"""
    lengths: dict[str, dict[int, int]]
    """rows per length in tokens, per split"""
    words: list[tuple[str, int]]
    """the vocabulary and how often each word stands in the training split"""
    all_words: int
    different_words: int


def preprocess(options: Options, progress: Progress) -> dict[str, Any]:
    """Make the dataset.

    Returns:
        Its manifest.

    Raises:
        UsageError: the input cannot be used, or nothing of it remains.
        RunError: a failure during the run.
    """
    with _work_folder(options.out) as work:
        shards = _ingest(options, work, progress)
        settings, settings_file = options.settings, options.settings.write(work / "settings.json")
        run = _Jobs(options, work, progress)
        run(CleanJob, shards.shards, "clean", {"settings": settings_file})
        clean = sorted((work / "clean").glob("part-*"))
        shutil.rmtree(work / "shards")
        run(CountJob, clean, "count", {"settings": settings_file})
        counted = _read_counts(options, work / "count", shards.lines)
        vocabulary = options.vocabulary or tuple(word for word, _ in counted.words)
        settings = _with_bounds(settings, counted, len(vocabulary))
        settings_file = settings.write(work / "encode.json")
        words_file = work / "vocabulary.txt"
        words_file.write_bytes("".join(f"{word}\n" for word in vocabulary).encode())
        run(EncodeJob, clean, "encode", {"settings": settings_file, "vocabulary": words_file})
        return _write_dataset(options, settings, counted, vocabulary, work, progress)


@contextmanager
def _work_folder(out: Path) -> Iterator[Path]:
    """A folder for everything temporary, removed at the end, whatever the end is."""
    parent = Path(os.environ.get("TMPDIR") or next(path for path in out.absolute().parents if path.is_dir()))
    if "#" in str(parent):
        raise UsageError(
            f"{parent}: mrjob cannot work in a folder whose path holds '#'; choose another --out, or set TMPDIR"
        )
    try:
        work = Path(tempfile.mkdtemp(prefix=".mr-", dir=parent))
    except OSError as error:
        raise UsageError(
            f"{parent}: no temporary folder can be made here ({error.strerror}); set TMPDIR or choose another --out"
        ) from None
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _ingest(options: Options, work: Path, progress: Progress) -> Ingested:
    folder = work / "shards"
    folder.mkdir()
    with progress.stage("reading the input") as stage:
        shards = ingest(options.inputs, folder, lambda lines, size: stage.tell(f"{lines:,} lines, {size >> 20:,} MB"))
        stage.tell(f"{sum(shards.lines):,} lines, {shards.bytes / 1e6:,.1f} MB")
    if not shards.shards:
        raise UsageError(
            f"{options.inputs[0]}{' and all others' if len(options.inputs) > 1 else ''}: empty; give files with reviews"
        )
    return shards


class _Jobs:
    """Runs jobs with the options of the call."""

    TITLES: ClassVar = {"clean": "cleaning, dropping duplicates", "count": "counting words", "encode": "encoding"}

    def __init__(self, options: Options, work: Path, progress: Progress) -> None:
        self.options, self.work, self.progress = options, work, progress

    def __call__(self, job: type[ReviewJob], inputs: list[Path], name: str, files: dict[str, Path]) -> None:
        scratch = self.work / f"{name}-scratch"
        scratch.mkdir()
        with self.progress.stage(self.TITLES[name]):
            run_job(
                job,
                inputs,
                self.work / name,
                runner=self.options.runner,
                cores=self.options.cores,
                scratch=scratch,
                files=files,
            )
        shutil.rmtree(scratch, ignore_errors=True)


def _read_counts(options: Options, folder: Path, lines: list[int]) -> Counted:
    numbers: Counter[str] = Counter()
    for key, value in read_all(folder, NUMBER):
        numbers[key.decode()] += int(value)
    files: list[dict[str, Any]] = []
    for number, path in enumerate(options.inputs):
        found = {field: numbers[f"file:{number}:{field}"] for field in COUNT_FIELDS[1:]}
        if sum(found.values()) != lines[number]:
            raise RunError(
                f"{path}: {lines[number]} lines were read, but {sum(found.values())} accounted for ({found}); "
                "this is an error in the program: nothing was written, please report it"
            )
        files.append({"file": path.name, "lines": lines[number], **found})
    counts = {field: sum(file[field] for file in files) for field in COUNT_FIELDS}
    lengths: dict[str, dict[int, int]] = {split: {} for split in SPLITS}
    for name, count in numbers.items():
        if name.startswith("length:"):
            _, split, length = name.split(":")
            lengths[split][int(length)] = count
    words = sorted(
        ((decode_words(word)[0], int(count)) for word, count in read_all(folder, WORD)),
        key=lambda entry: (-entry[1], entry[0]),
    )
    _check_not_empty(options, counts, lengths, folder)
    return Counted(
        files, counts, lengths, words[: options.settings.vocab_size], numbers["words:all"], numbers["words:different"]
    )


def _check_not_empty(
    options: Options, counts: dict[str, int], lengths: dict[str, dict[int, int]], folder: Path
) -> None:
    if not counts["kept"]:
        told = ", ".join(f"{counts[field]} {field.replace('_', ' ')}" for field in COUNT_FIELDS[2:] if counts[field])
        first = next(merge_sorted(folder, QUARANTINE), None)
        example = ""
        if first:
            file, line, reason, _ = read_quarantine(*first)
            example = f"; {options.inputs[file].name} line {line}: {reason}"
        raise UsageError(
            f"no usable review in {counts['lines']} lines ({told}{example}); give reviews with "
            "reviewText and overall, or text and rating"
        )
    if not lengths["train"] and options.vocabulary is None:
        raise UsageError(
            f"none of the {counts['kept']} distinct reviews falls into the training split; give more reviews, "
            "or train a larger share with --split"
        )


def _with_bounds(settings: Settings, counted: Counted, vocabulary: int) -> Settings:
    longest = max(max(lengths, default=0) for lengths in counted.lengths.values())
    # A dataset without a training split is bucketed by what it has.
    basis = counted.lengths["train"] or sum((Counter(lengths) for lengths in counted.lengths.values()), Counter())
    bounds = choose_bounds(basis, longest, settings.text.max_length)
    return replace(settings, bounds=bounds, item_bytes=2 if vocabulary + FIRST_WORD_ID <= 1 << 16 else 4)


def _write_dataset(
    options: Options, settings: Settings, counted: Counted, vocabulary: tuple[str, ...], work: Path, progress: Progress
) -> dict[str, Any]:
    new = not options.out.exists()
    rows = {split: [0] * len(settings.bounds) for split in SPLITS}
    for split, lengths in counted.lengths.items():
        for length, count in lengths.items():
            rows[split][next(i for i, bound in enumerate(settings.bounds) if length <= bound)] += count
    writer = DatasetWriter(options.out, bounds=settings.bounds, rows=rows, vocabulary=vocabulary)
    try:
        with progress.stage("writing the dataset") as stage:
            unknown = pack(
                work / "encode",
                writer,
                settings.bounds,
                settings.item_bytes,
                lambda done: stage.tell(f"{done:,} of {counted.counts['kept']:,} rows"),
            )
            _write_quarantine(options, work / "count")
            return writer.finish(
                text=settings.text.to_json(),
                counts=counted.counts,
                extra={
                    "inputs": counted.files,
                    "split": settings.split,
                    "statistics": _statistics(settings, counted, unknown),
                },
            )
    except BaseException:
        writer.abort()
        (options.out / QUARANTINE_FILE).unlink(missing_ok=True)
        if new:
            shutil.rmtree(options.out, ignore_errors=True)
        raise


def _write_quarantine(options: Options, counts: Path) -> None:
    with (options.out / QUARANTINE_FILE).open("w", encoding="ascii") as stream:
        # One line of a JSON array can hold several records; their order must not depend on the runner.
        for key, value in (
            pair for _, group in groupby(merge_sorted(counts, QUARANTINE), itemgetter(0)) for pair in sorted(group)
        ):
            file, line, reason, start = read_quarantine(key, value)
            entry = {"file": options.inputs[file].name, "line": line, "reason": reason, "start": start}
            stream.write(json.dumps(entry) + "\n")


def _statistics(settings: Settings, counted: Counted, unknown: dict[str, int]) -> dict[str, Any]:
    tokens = {
        split: sum(length * count for length, count in lengths.items()) for split, lengths in counted.lengths.items()
    }
    return {
        "tokens": tokens,
        "unknown_tokens": unknown,
        "unknown_share": {
            split: round(unknown[split] / tokens[split], 6) if tokens[split] else 0.0 for split in SPLITS
        },
        "padding_waste": {
            split: round(padding_waste(lengths, settings.bounds), 6) for split, lengths in counted.lengths.items()
        },
        "training_words": {
            "all": counted.all_words,
            "different": counted.different_words,
            "in_vocabulary": sum(count for _, count in counted.words),
        },
    }
