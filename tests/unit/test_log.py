"""metrics.jsonl is cut back to a checkpoint's step."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from unittest import mock

from engine.log import MetricsFile
from tests.limits import limited


def test_cutting_keeps_what_came_before_and_drops_a_torn_line(tmp_path):
    log = MetricsFile(tmp_path / "metrics.jsonl")
    log.append({"event": "start", "step": 0})
    for step in (10, 20, 30):
        log.append({"event": "step", "step": step, "loss": step / 7})
    log.append({"event": "end", "step": 30})
    with log.path.open("a") as stream:
        stream.write('{"event": "st')
    log.cut(20)
    lines = [json.loads(line) for line in log.path.read_text().splitlines()]
    assert [(line["event"], line["step"]) for line in lines] == [("start", 0), ("step", 10), ("step", 20)]
    assert lines[1]["loss"] == 10 / 7  # full digits
    log.cut(None)
    assert log.path.read_text() == ""


def test_numbers_that_json_does_not_have_become_null(tmp_path):
    log = MetricsFile(tmp_path / "metrics.jsonl")
    log.append({"event": "epoch", "loss": float("nan"), "list": [float("inf"), 1.0]})
    assert json.loads(log.path.read_text()) == {"event": "epoch", "loss": None, "list": [None, 1.0]}


def test_a_full_disk_delays_lines_and_loses_none(tmp_path):
    said: list[str] = []
    log = MetricsFile(tmp_path / "metrics.jsonl", said.append)
    log.append({"event": "start", "step": 0})
    with mock.patch.object(Path, "open", side_effect=OSError(errno.ENOSPC, "No space left on device")):
        for step in (1, 2):
            log.append({"event": "step", "step": step})
    assert log.unwritten() == 2
    assert len(said) == 1
    assert "No space left on device" in said[0]
    log.append({"event": "step", "step": 3})
    assert [json.loads(line)["step"] for line in log.path.read_text().splitlines()] == [0, 1, 2, 3]
    assert log.unwritten() == 0
    assert "2 lines that waited" in said[1]


def test_a_line_is_written_whole_or_not_at_all(tmp_path):
    log = MetricsFile(tmp_path / "metrics.jsonl")
    log.append({"event": "start", "step": 0})
    before = log.path.read_bytes()
    with limited(len(before) + 7):
        log.append({"event": "step", "step": 1})
    assert log.path.read_bytes() == before
    log.append({"event": "step", "step": 2})
    assert [json.loads(line)["step"] for line in log.path.read_text().splitlines()] == [0, 1, 2]
