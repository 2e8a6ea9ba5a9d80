"""metrics.jsonl is cut back to a checkpoint's step."""

from __future__ import annotations

import json

from engine.log import MetricsFile


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
