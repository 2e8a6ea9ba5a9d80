"""One case against the real reader: what came of it, and whether that is right."""

from __future__ import annotations

import os
import tempfile
import warnings
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch

import native
from engine.checkpoint import load_checkpoint
from engine.errors import CheckpointError
from engine.plan import Plan
from native import DatasetError
from native.verify import verify
from tests.fuzz.cases import CHECKPOINT, Case
from tests.fuzz.material import MANIFEST, VOCABULARY, Material
from tests.fuzz.oracle import Rows, slow_read

REFUSED, RIGHT = "refused", "read rightly"
WRONG, ERROR, CRASH, HANG = "WRONG", "OTHER ERROR", "CRASH", "HANG"
OUTCOMES = (REFUSED, RIGHT, WRONG, ERROR, CRASH, HANG)
FAILURES = (WRONG, ERROR, CRASH, HANG)
STREAM_EVERY, VERIFY_EVERY = 7, 9
"""of so many cases one is read through a batch stream too, and one examined as the doctor does; odd, so that kinds,
which are even in number, all take part"""


class WrongError(Exception):
    """What was read is not what is there."""


class Subject:
    """The valid files on disk, and the reader let loose on them with a case's in their place.

    Args:
        material: the valid files.
        folder: where they are put; best in memory.
    """

    def __init__(self, material: Material, folder: Path) -> None:
        self._material, self._folder = material, folder
        for name, pristine in material.datasets.items():
            for path, data in pristine.files.items():
                (folder / name / path).parent.mkdir(parents=True, exist_ok=True)
                (folder / name / path).write_bytes(data)
        # A splice at the very beginning makes the other one, which is as valid.
        self._valid = [self._load(data) for data in (material.checkpoint, material.other_checkpoint)]

    def attempt(self, case: Case, number: int) -> tuple[str, str]:
        """Run a case; its outcome (one of OUTCOMES) and what is to be said of it."""
        try:
            if case.dataset == CHECKPOINT:
                self._checkpoint(case)
            else:
                self._dataset(case, number)
        except (DatasetError, CheckpointError) as error:
            text = str(error)
            return (REFUSED, text) if text and "\n" not in text else (ERROR, f"not one line: {text!r}")
        except WrongError as error:
            return WRONG, str(error)
        except Exception as error:
            return ERROR, f"{type(error).__name__}: {error}"
        return RIGHT, ""

    def _dataset(self, case: Case, number: int) -> None:
        folder = self._folder / case.dataset
        pristine = self._material.datasets[case.dataset]
        refused: DatasetError | None = None
        with ExitStack() as restore:
            for path, data in case.files.items():
                restore.callback(_put, folder / path, pristine.files[path])
                _put(folder / path, data)
            try:
                found, words = self._read(folder, case, number)
            except DatasetError as error:
                refused = error
            if number % VERIFY_EVERY == 0:
                self._examine(folder, case, refused)
        if refused is not None:
            raise refused
        expected, expected_words = pristine.rows, pristine.words
        if case.signed:
            now = {**pristine.files, **{path: data for path, data in case.files.items() if data is not None}}
            try:
                expected = slow_read(now, "train")
            except Exception as error:
                raise WrongError(f"read, although the slow twin finds: {error}") from None
            expected_words = now[VOCABULARY].decode().split("\n")[:-1]
        if found != expected:
            raise WrongError("other rows than the slow twin's")
        if words is not None and words != expected_words:
            raise WrongError("other words than the slow twin's")

    def _read(self, folder: Path, case: Case, number: int) -> tuple[list[Rows], list[str] | None]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            with native.open_dataset(folder) as data:
                batches = [data.read_bucket(b, np.arange(shape.rows)) for b, shape in enumerate(data.layout)]
                if number % STREAM_EVERY == 0 and len(data):
                    plan = Plan(layout=data.layout, batch_size=7, seed=number, window_bytes=100)
                    for place, batch in zip(plan.epoch(0), data.batches(plan), strict=True):
                        rows, whole = plan.rows(0, place), batches[place.bucket]
                        for name in ("tokens", "lengths", "stars"):
                            if not np.array_equal(getattr(batch, name), getattr(whole, name)[rows]):
                                raise WrongError("the stream's batch is not what the rows are")
                named = VOCABULARY in case.files or (MANIFEST in case.files and number % 3 == 0)
                words = data.vocabulary() if named else None
        rows = [
            list(zip(batch.tokens.tolist(), batch.lengths.tolist(), batch.stars.tolist(), strict=True))
            for batch in batches
        ]
        return rows, words

    def _examine(self, folder: Path, case: Case, refused: DatasetError | None) -> None:
        """The doctor must find whatever the reader refused, and every changed byte that a digest covers."""
        if not (folder / MANIFEST).exists():
            return
        problems = verify(folder).problems
        pristine = self._material.datasets[case.dataset].files
        covered = not case.signed and any(
            data is not None and data != pristine[path] for path, data in case.files.items() if path != MANIFEST
        )
        if not problems and (refused is not None or covered):
            raise WrongError(f"the doctor found nothing, the reader {refused}")

    def _checkpoint(self, case: Case) -> None:
        data = case.files[CHECKPOINT]
        assert data is not None
        if self._load(data) not in self._valid:
            raise WrongError("another checkpoint than was saved")

    def _load(self, data: bytes) -> tuple[object, ...]:
        path = self._folder / CHECKPOINT
        _put(path, data)
        found = load_checkpoint(path)
        tensors = {
            name: (str(tensor.dtype), tuple(tensor.shape), tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
            for name, tensor in found.tensors.items()
        }
        return tensors, found.values


def _put(path: Path, data: bytes | None) -> None:
    """Put a new file in place: writing into the old one would go unnoticed within a tick of the file system's clock."""
    if data is None:
        path.unlink()
        return
    temporary = path.with_name(".new")
    temporary.write_bytes(data)
    temporary.replace(path)


def memory_folder() -> Path:
    """A new folder, in memory where that can be."""
    shared = Path("/dev/shm")
    return Path(tempfile.mkdtemp(prefix="fuzz-", dir=shared if os.access(shared, os.W_OK) else None))
