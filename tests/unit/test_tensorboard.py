"""Scalars for TensorBoard, read back from the event files; a resumed run has no step twice."""

from __future__ import annotations

import builtins
import struct
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from engine import tensorboard
from engine.errors import UsageError
from engine.tensorboard import TensorBoard, require_tensorboard, scalars
from tests.limits import limited

events_of = pytest.importorskip("tensorboardX.proto.event_pb2", reason="pip install tensorboardX")
ROOT = Path(__file__).parents[2]

EPOCH = {
    "event": "epoch", "step": 20, "epoch": 1, "train_loss": 0.5, "seconds": 4.0, "rows_per_second": 250.0,
    "validation": {"loss": 0.75, "accuracy": 0.5, "confusion": [[1, 2], [3, 4]]},
    "shares": [30, 10], "compute_seconds": [1.0, 2.0], "input_seconds": [0.0, 0.25], "wait_seconds": [3.0, 1.5],
}  # fmt: skip


def records(path: Path) -> list[Any]:
    """The events of a file: records of a length, its checksum, the data, its checksum."""
    data, found = path.read_bytes(), []
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        assert len(data) >= length + 16, "a torn record"
        found.append(events_of.Event.FromString(data[12 : 12 + length]))
        data = data[length + 16 :]
    return found


def read(folder: Path) -> list[tuple[str, int, float]]:
    """Tag, step and value of what TensorBoard shows: a start drops what earlier files hold of its step and later."""
    found: list[tuple[str, int, float]] = []
    for path in sorted(folder.iterdir()):
        for event in records(path):
            if event.session_log.status == events_of.SessionLog.START:
                found = [entry for entry in found if entry[1] < event.step]
            found += [(value.tag, event.step, value.simple_value) for value in event.summary.value]
    return found


def test_figures_are_read_back(tmp_path):
    board = TensorBoard(tmp_path / "tensorboard", 0, pytest.fail)
    board.record({"event": "start", "step": 0})
    board.record({"event": "step", "step": 10, "epoch": 1, "loss": 0.625, "learning_rate": 0.25})
    board.record(EPOCH)
    found = {(tag, step): value for tag, step, value in read(tmp_path / "tensorboard")}
    assert found["train/loss", 10] == 0.625
    assert found["train/learning rate", 10] == 0.25
    assert found["validation/accuracy", 20] == 0.5
    assert found["speed/rows per second", 20] == 250.0
    assert found["shares/rank 0", 20] == 30
    assert found["compute seconds/rank 1", 20] == 2.0
    assert found["input seconds/rank 1", 20] == 0.25
    assert found["wait seconds/rank 0", 20] == 3.0
    assert "validation/confusion" not in {tag for tag, _ in found}


def test_a_resumed_run_has_no_step_twice(tmp_path, monkeypatch):
    folder = tmp_path / "tensorboard"
    first = TensorBoard(folder, 0, pytest.fail)
    for step in (10, 20, 30):
        first.record({"event": "step", "step": step, "loss": 1.0})
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 5)
    second = TensorBoard(folder, 20, pytest.fail)
    for step in (30, 40):
        second.record({"event": "step", "step": step, "loss": 2.0})
    assert read(folder) == [("train/loss", step, loss) for step, loss in ((10, 1), (20, 1), (30, 2), (40, 2))]
    monkeypatch.setattr(time, "time", lambda: now + 10)
    TensorBoard(folder, 0, pytest.fail)
    assert read(folder) == []


def test_a_full_disk_is_told_once_and_training_goes_on(tmp_path):
    said: list[str] = []
    board = TensorBoard(tmp_path / "tensorboard", 0, said.append)
    with limited(100):
        for step in range(5):
            board.record({"event": "step", "step": step, "loss": 1.0})
    assert len(said) == 1
    assert "training goes on without figures for TensorBoard" in said[0]


def test_without_the_package_it_is_told_what_to_install(monkeypatch):
    import_ = builtins.__import__

    def without(name: str, *arguments: Any, **named: Any) -> Any:
        if name.startswith("tensorboardX"):
            raise ImportError("No module named 'tensorboardX'")
        return import_(name, *arguments, **named)

    for name in [name for name in sys.modules if name.startswith("tensorboardX")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UsageError, match=r"--tensorboard needs a package .*pip install"):
        require_tensorboard()


def test_the_version_that_is_told_is_the_one_that_is_pinned():
    pinned = (ROOT / ".setup" / "constraints.txt").read_text()
    assert tensorboard.INSTALL.split("'")[1] in pinned.splitlines()


def test_a_run_without_validation_or_with_other_events_has_fewer():
    assert dict(scalars({"event": "work", "step": 0})) == {}
    assert not [tag for tag, _ in scalars({**EPOCH, "validation": None}) if tag.startswith("validation")]
