"""Runs the stages one after the other. The driver holds counts and the vocabulary, never the reviews."""

from __future__ import annotations

import hashlib
import shutil
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from mr.buckets import choose_bounds
from mr.clean import CleanJob
from mr.count import CountJob
from mr.counted import Counted, read_counts
from mr.encode import EncodeJob
from mr.errors import UsageError
from mr.ingest import ingest
from mr.job import JobRun, ReviewJob, check_runner, clear_cluster, output_stands, run_job
from mr.meter import watched
from mr.options import Options
from mr.pack import pack
from mr.pieces import Piece, look, whole_files
from mr.progress import Progress
from mr.quarantine import check_malformed, example, malformed_of, read_malformed, write_quarantine
from mr.records import parts
from mr.settings import Settings
from mr.stages import Stages, only_writer, open_stages, work_folder
from mr.statistics import statistics
from mr.stores import RemoteFile
from native.format import COUNT_FIELDS, MANIFEST, QUARANTINE_FILE, UNFINISHED, read_manifest
from native.part_writer import Layout
from native.text import FIRST_WORD_ID, SPLITS
from native.writer import finish_dataset


def number_of_stages(options: Options) -> int:
    """That preprocess tells of."""
    return 6 if _all_here(options) else 5


def preprocess(options: Options, progress: Progress) -> dict[str, Any]:
    """Make the dataset, or the rest of it where an earlier call with the same inputs and settings was cut off.

    Returns:
        Its manifest.

    Raises:
        UsageError: the input cannot be used, or nothing of it remains.
        RunError: a failure during the run.
    """

    def clear(work: Path) -> None:
        clear_cluster(work, options.runner)

    work = options.work or work_folder(options.out)
    with open_stages(work, options.work is not None, clear) as stages:
        check_runner(work, options.runner)
        return _Run(options, stages, progress).manifest()


def _all_here(options: Options) -> bool:
    return not any(isinstance(path, RemoteFile) for path in options.inputs)


class _Run:
    """One call: its stages one after the other, each with the key of all that it depends on."""

    def __init__(self, options: Options, stages: Stages, progress: Progress) -> None:
        self.options, self.stages, self.progress = options, stages, progress
        self.settings, self.work = options.settings, stages.work
        self.jobs = _Jobs(options, self.work, progress)

    def manifest(self) -> dict[str, Any]:
        """Of the finished dataset."""
        options, settings = self.options, self.settings
        local = _all_here(options)
        sources, pieces = self._look() if local else (None, whole_files(options.inputs))
        ingested = None if sources is None else self._known_lines(sources)
        if sources is not None and (known := self._finished(sources)) is not None:
            return known
        if ingested is None:
            # Files elsewhere are read once: their digests are known afterwards.
            ingested, sources = self._ingest(sources, pieces)
            if not local and (known := self._finished(sources)) is not None:
                return known
        assert sources is not None
        clean_key = self._clean(sources, ingested)
        counted = self._count(clean_key, ingested)
        vocabulary = options.vocabulary or tuple(word for word, _ in counted.words)
        settings = _with_bounds(settings, counted, len(vocabulary))
        encode_key = self._encode(clean_key, settings, vocabulary)
        return self._write(encode_key, self._made_from(sources), settings, counted, vocabulary)

    def _look(self) -> tuple[list[list[str]], list[Piece]]:
        files = [path for path in self.options.inputs if isinstance(path, Path)]
        size = sum(path.stat().st_size for path in files)
        with self.progress.stage("looking at the input", "bytes") as stage:
            return look(files, lambda done: stage.tell(done / max(size, 1), done, done))

    def _made_from(self, sources: list[list[str]]) -> str:
        return self.stages.key("dataset", sources, self.settings.to_json(), self.options.vocabulary)

    def _finished(self, sources: list[list[str]]) -> dict[str, Any] | None:
        """The manifest where the dataset was made by this call before."""
        out = self.options.out
        if not (out / MANIFEST).exists():
            return None
        manifest = read_manifest(out)
        if manifest.get("made_from") != self._made_from(sources):
            raise UsageError(
                f"--out {out}: holds a dataset of other reviews or settings; name a new folder, nothing is overwritten"
            )
        (out / UNFINISHED).unlink(missing_ok=True)
        self.progress.note(f"{out} was made of these reviews with these settings: nothing to do")
        return manifest

    def _known_lines(self, sources: list[list[str]]) -> list[int] | None:
        """Lines per file of an input that was read before, where the shards or what was made of them still stand."""
        key = self._ingest_key(sources)
        lines: list[int] | None = self.stages.result("ingest", key)
        cleaned = self._stands("clean", self._clean_key(sources))
        if lines is not None and (cleaned or (self.work / "ingest").is_dir()):
            self.progress.skipped("reading the input")
            return lines
        return None

    def _ingest_key(self, sources: list[list[str]]) -> str:
        return self.stages.key("ingest", sources, asdict(self.settings.fields))

    def _ingest(self, sources: list[list[str]] | None, pieces: list[Piece]) -> tuple[list[int], list[list[str]]]:
        options = self.options
        self.stages.begin("ingest")
        folder = self.work / "ingest"
        folder.mkdir()
        size = sum(piece.size for piece in pieces)
        # What is elsewhere is read by this process: connections do not outlive a fork.
        several = options.runner.name != "inline" and _all_here(options)
        with self.progress.stage("reading the input") as stage:
            found = ingest(
                pieces,
                folder,
                options.settings.fields,
                processes=options.runner.cores if several else 1,
                progress=lambda done, lines, written: stage.tell(done / max(size, 1), lines, written),
            )
        if not found.shards:
            others = " and all others" if len(options.inputs) > 1 else ""
            raise UsageError(f"{options.inputs[0]}{others}: empty; give files with reviews")
        if sources is None:
            sources = [[path.name, digest] for path, digest in zip(options.inputs, found.digests, strict=True)]
        self.stages.end("ingest", self._ingest_key(sources), found.lines)
        return found.lines, sources

    def _clean_key(self, sources: list[list[str]]) -> str:
        words, place = self.settings.text.stop_words, self._place()
        return self.stages.key("clean", self._ingest_key(sources), list(words), place)

    def _place(self) -> str:
        """Where a job's output is that stays on a cluster."""
        return "here" if self.options.runner.is_here else self.options.runner.name

    def _clean(self, sources: list[list[str]], lines: list[int]) -> str:
        key = self._clean_key(sources)
        if self._skipped("clean", key):
            return key
        shards = sorted((self.work / "ingest").iterdir())
        self.jobs(CleanJob, shards, "clean", {"settings": self.settings.write(self.work / "settings.json")})
        self._end("clean", key)
        shutil.rmtree(self.work / "ingest")
        return key

    def _count(self, clean_key: str, lines: list[int]) -> Counted:
        options, settings, folder = self.options, self.settings, self.work / "count"
        clean = parts(self.work / "clean")
        check_malformed(read_malformed(self.work / "clean", options.inputs, lines), options)
        key = self.stages.key("count", clean_key, settings.text.to_json(), settings.split, settings.vocab_size)
        if not self._skipped("count", key):
            self.jobs(CountJob, clean, "count", {"settings": settings.write(self.work / "settings.json")})
            self._end("count", key)
        counted = read_counts(folder, options.inputs, lines, settings.vocab_size)
        check_malformed(malformed_of(counted, folder), options)
        _check_not_empty(options, counted, folder)
        return counted

    def _encode(self, clean_key: str, settings: Settings, vocabulary: tuple[str, ...]) -> str:
        words = "".join(f"{word}\n" for word in vocabulary).encode()
        key = self.stages.key("encode", clean_key, settings.to_json(), hashlib.sha256(words).hexdigest())
        if not self._skipped("encode", key):
            words_file = self.work / "vocabulary.txt"
            words_file.write_bytes(words)
            files = {"settings": settings.write(self.work / "encode-settings.json"), "vocabulary": words_file}
            self.jobs(EncodeJob, parts(self.work / "clean"), "encode", files)
            self._end("encode", key)
        return key

    def _skipped(self, stage: str, key: str) -> bool:
        """Whether a job need not be run; if it must, what there is of its output is removed."""
        if self._stands(stage, key):
            self.progress.skipped(TITLES[stage])
            return True
        self.stages.begin(stage, f"{stage}-scratch")
        return False

    def _stands(self, stage: str, key: str) -> bool:
        """Whether a job's output is there, whole."""
        return self.stages.result(stage, key) == self._files(stage) != [] and output_stands(
            self.work / stage, self.options.runner
        )

    def _end(self, stage: str, key: str) -> None:
        self.stages.end(stage, key, self._files(stage))

    def _files(self, stage: str) -> list[list[Any]]:
        """Name and size of each part of a job's output."""
        return [[path.name, path.stat().st_size] for path in parts(self.work / stage)]

    def _write(
        self, encode_key: str, made_from: str, settings: Settings, counted: Counted, vocabulary: tuple[str, ...]
    ) -> dict[str, Any]:
        options, out, kept = self.options, self.options.out, counted.counts["kept"]
        layout = Layout(settings.bounds, _rows(settings, counted), len(vocabulary))
        out.mkdir(parents=True, exist_ok=True)
        with only_writer(out), self.progress.stage("writing the dataset", "rows") as stage:
            if (out / MANIFEST).exists():
                raise UsageError(f"--out {out}: another run has made a dataset here; name a new folder")
            packed = pack(
                parts(self.work / "encode"),
                out,
                layout,
                work=self.work / "sorted",
                key=encode_key,
                processes=1 if options.runner.name == "inline" else options.runner.cores,
                progress=lambda done: stage.tell(done / kept, done),
            )
            write_quarantine(out / QUARANTINE_FILE, self.work / "count", options.inputs)
            unknown = {split: sum(part["unknown"] for part in packed[split]) for split in SPLITS}
            counted_words = options.vocabulary is None
            manifest = finish_dataset(
                out,
                layout,
                packed,
                vocabulary,
                text=settings.text.to_json(),
                counts=counted.counts,
                extra={
                    "inputs": counted.files,
                    "split": settings.split,
                    "made_from": made_from,
                    "statistics": statistics(
                        counted, settings.bounds, settings.text.max_length, unknown, counted_words
                    ),
                },
            )
        (out / UNFINISHED).unlink()
        return manifest


TITLES = {"clean": "cleaning, dropping duplicates", "count": "counting words", "encode": "encoding"}


class _Jobs:
    """Runs jobs with the options of the call."""

    def __init__(self, options: Options, work: Path, progress: Progress) -> None:
        self.options, self.work, self.progress = options, work, progress

    def __call__(self, job: type[ReviewJob], inputs: list[Path], name: str, files: dict[str, Path]) -> None:
        scratch = self.work / f"{name}-scratch"
        scratch.mkdir()
        size = sum(path.stat().st_size for path in inputs)
        unit = "lines" if job is CleanJob else "records"
        with self.progress.stage(TITLES[name], unit) as stage, watched(stage, size):
            run_job(
                JobRun(
                    job_class=job,
                    runner=self.options.runner,
                    inputs=inputs,
                    output=self.work / name,
                    scratch=scratch,
                    files=files,
                    note=stage.note,
                )
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


def _rows(settings: Settings, counted: Counted) -> dict[str, tuple[int, ...]]:
    """Rows per split and bucket."""
    rows = {split: [0] * len(settings.bounds) for split in SPLITS}
    for split, lengths in counted.lengths.items():
        for length, count in lengths.items():
            rows[split][next(i for i, bound in enumerate(settings.bounds) if length <= bound)] += count
    return {split: tuple(counts) for split, counts in rows.items()}
