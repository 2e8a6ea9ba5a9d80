"""Runs the stages one after the other. The driver holds counts and the vocabulary, never the reviews."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from mr.buckets import choose_bounds
from mr.clean import CleanJob
from mr.count import CountJob
from mr.counted import Counted, read_counts
from mr.encode import EncodeJob
from mr.errors import UsageError
from mr.ingest import Ingested, ingest
from mr.job import ReviewJob, check_runner, clear_cluster, run_job
from mr.meter import watched
from mr.options import Options
from mr.pack import pack
from mr.progress import Progress
from mr.quarantine import check_malformed, example, write_quarantine
from mr.settings import Settings
from mr.statistics import statistics
from native.format import COUNT_FIELDS, QUARANTINE_FILE
from native.text import FIRST_WORD_ID, SPLITS
from native.writer import DatasetWriter


def preprocess(options: Options, progress: Progress) -> dict[str, Any]:
    """Make the dataset.

    Returns:
        Its manifest.

    Raises:
        UsageError: the input cannot be used, or nothing of it remains.
        RunError: a failure during the run.
    """
    with _work_folder(options.out) as work, _cluster(options, work):
        shards = _ingest(options, work, progress)
        settings, settings_file = options.settings, options.settings.write(work / "settings.json")
        run = _Jobs(options, work, progress)
        run(CleanJob, shards.shards, "clean", {"settings": settings_file})
        clean = sorted((work / "clean").glob("part-*"))
        shutil.rmtree(work / "shards")
        run(CountJob, clean, "count", {"settings": settings_file})
        counted = read_counts(work / "count", options.inputs, shards.lines, settings.vocab_size)
        check_malformed(counted, options.max_malformed, options.out, work / "count", options.inputs)
        _check_not_empty(options, counted, work / "count")
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


@contextmanager
def _cluster(options: Options, work: Path) -> Iterator[None]:
    """Checks that the jobs can run there; removes at the end what they left for each other."""
    check_runner(work, runner=options.runner, conf=options.conf, spark_master=options.spark_master)
    try:
        yield
    finally:
        clear_cluster(work, runner=options.runner, conf=options.conf)


def _ingest(options: Options, work: Path, progress: Progress) -> Ingested:
    folder = work / "shards"
    folder.mkdir()
    size = sum(path.stat().st_size for path in options.inputs)
    with progress.stage("reading the input") as stage:
        shards = ingest(
            options.inputs,
            folder,
            options.settings.fields,
            lambda done, lines, written: stage.tell(done / max(size, 1), lines, written),
        )
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
        size = sum(path.stat().st_size for path in inputs)
        unit = "lines" if job is CleanJob else "records"
        with self.progress.stage(self.TITLES[name], unit) as stage, watched(stage, size):
            run_job(
                job,
                inputs,
                self.work / name,
                runner=self.options.runner,
                cores=self.options.cores,
                scratch=scratch,
                files=files,
                conf=self.options.conf,
                spark_master=self.options.spark_master,
                note=stage.note,
            )
        shutil.rmtree(scratch, ignore_errors=True)


def _check_not_empty(options: Options, counted: Counted, folder: Path) -> None:
    counts = counted.counts
    if not counts["kept"]:
        told = [f"{counts[field]} {field.replace('_', ' ')}" for field in COUNT_FIELDS[2:] if counts[field]]
        told += filter(None, [example(folder, options.inputs)])
        fields = options.settings.fields
        raise UsageError(
            f"no usable review in {counts['lines']} lines ({'; '.join(told)}); their text is looked for in "
            f"{' or '.join(fields.text)}, their rating in {' or '.join(fields.rating)}: name others with --columns"
        )
    if not counted.lengths["train"] and options.vocabulary is None:
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
        kept = counted.counts["kept"]
        with progress.stage("writing the dataset", "rows") as stage:
            unknown = pack(
                work / "encode",
                writer,
                settings.bounds,
                settings.item_bytes,
                lambda done: stage.tell(done / kept, done),
            )
            write_quarantine(options.out / QUARANTINE_FILE, work / "count", options.inputs)
            return writer.finish(
                text=settings.text.to_json(),
                counts=counted.counts,
                extra={
                    "inputs": counted.files,
                    "split": settings.split,
                    "statistics": statistics(
                        counted, settings.bounds, settings.text.max_length, unknown, options.vocabulary is None
                    ),
                },
            )
    except BaseException:
        writer.abort()
        (options.out / QUARANTINE_FILE).unlink(missing_ok=True)
        if new:
            shutil.rmtree(options.out, ignore_errors=True)
        raise
