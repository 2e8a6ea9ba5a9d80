"""A checkpoint that cannot be written, or whose writer is killed, at any point: the one before it still loads."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from engine.checkpoint import Checkpoint, CheckpointFolder
from tests.limits import limited

STEPS = (10, 20, 30, 40)
"""of the checkpoints that are there before the one that fails at step 50; three are kept beside the best one"""


def checkpoint(step: int) -> Checkpoint:
    return Checkpoint({"model/a": torch.full((700,), float(step))}, {"progress": {"total_steps": step}})


def fill(folder: Path) -> CheckpointFolder:
    checkpoints = CheckpointFolder(folder)
    for step in STEPS:
        checkpoints.save(checkpoint(step), step, best=step == 20)
    return checkpoints


def assert_last_good(folder: Path, *steps: int) -> None:
    path, found, problems = CheckpointFolder(folder).latest_good()
    assert not problems
    assert path is not None
    assert found is not None
    assert found.values["progress"]["total_steps"] in steps
    assert float(found.tensors["model/a"][0]) == found.values["progress"]["total_steps"]
    assert (folder / "best").resolve().exists()
    assert (folder / "last").resolve().exists()


def test_a_write_that_fails_at_any_byte_leaves_the_one_before(tmp_path):
    checkpoints = fill(tmp_path)
    size = (tmp_path / "step-00000040").stat().st_size
    for limit in range(0, size, 97):
        with limited(limit), pytest.raises(OSError, match="too large"):
            checkpoints.save(checkpoint(50), 50, best=True)
        assert_last_good(tmp_path, 40)
        assert sorted(path.name for path in tmp_path.iterdir() if path.is_file() and not path.is_symlink()) == [
            "step-00000010",
            "step-00000020",
            "step-00000030",
            "step-00000040",
        ]
    checkpoints.save(checkpoint(50), 50, best=True)
    assert_last_good(tmp_path, 50)


CALLS = ((os, "fsync"), (os, "open"), (Path, "open"), (Path, "replace"), (Path, "symlink_to"), (Path, "unlink"))


@contextmanager
def nth_call(number: int, act: Callable[[], None]) -> Iterator[list[int]]:
    """Something happens at the n-th call to the file system that saving makes."""
    calls = [0]

    def wrapped(original: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            calls[0] += 1
            if calls[0] == number:
                act()
            return original(*arguments, **options)

        return call

    with mock.patch.multiple(os, **{name: wrapped(getattr(os, name)) for home, name in CALLS if home is os}):
        names = [name for home, name in CALLS if home is Path]
        with mock.patch.multiple(Path, **{name: wrapped(getattr(Path, name)) for name in names}):
            yield calls


def no_space() -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def points(tmp_path: Path) -> int:
    checkpoints = fill(tmp_path / "count")
    with nth_call(0, no_space) as calls:
        checkpoints.save(checkpoint(50), 50, best=True)
    assert calls[0] >= 10
    return calls[0]


def test_a_disk_that_is_full_at_any_call_leaves_a_good_one(tmp_path):
    for number in range(1, points(tmp_path) + 1):
        folder = tmp_path / str(number)
        checkpoints = fill(folder)
        with nth_call(number, no_space):
            try:
                checkpoints.save(checkpoint(50), 50, best=True)
            except OSError as error:
                assert error.errno == errno.ENOSPC  # noqa: PT017 (cleaning up may have met it, and gone on)
        assert_last_good(folder, 40, 50)


def test_a_kill_at_any_call_leaves_a_good_one(tmp_path):
    for number in range(1, points(tmp_path) + 1):
        folder = tmp_path / str(number)
        checkpoints = fill(folder)
        child = os.fork()
        if child == 0:
            with nth_call(number, lambda: os.kill(os.getpid(), signal.SIGKILL)):
                checkpoints.save(checkpoint(50), 50, best=True)
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        assert_last_good(folder, 40, 50)
        # The next run tidies up and goes on.
        CheckpointFolder(folder).go_on_from(40, 20)
        CheckpointFolder(folder).save(checkpoint(50), 50, best=False)
        assert_last_good(folder, 50)
        assert not list(folder.glob(".*"))


@pytest.mark.skipif(os.geteuid() != 0, reason="root is needed to mount a small file system")
def test_a_small_full_file_system(tmp_path):
    place = tmp_path / "small"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", place], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"no small file system here: {mounted.stderr.strip()}")
    try:
        checkpoints = fill(place)
        failed = 0
        for used in range(16):
            with suppress(OSError), (place / "filler").open("wb", buffering=0) as filler:
                filler.write(bytes(4096 * used))
            try:
                checkpoints.save(checkpoint(50), 50, best=False)
            except OSError as error:
                failed += 1
                assert error.errno == errno.ENOSPC  # noqa: PT017
            assert_last_good(place, 40, 50)
            (place / "step-00000050").unlink(missing_ok=True)
            checkpoints.go_on_from(40, 20)
            (place / "filler").unlink()
        assert 0 < failed < 16
    finally:
        subprocess.run(["umount", place], check=False)


def test_a_folder_that_cannot_be_written_is_said_so(tmp_path):
    checkpoints = fill(tmp_path)
    refused = OSError(errno.EROFS, "Read-only file system")
    with mock.patch.object(Path, "replace", side_effect=refused), pytest.raises(OSError, match="Read-only"):
        checkpoints.save(checkpoint(50), 50, best=True)
    assert_last_good(tmp_path, 40)
