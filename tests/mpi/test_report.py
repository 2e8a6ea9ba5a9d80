"""A run leaves a report, and what it rests on adds up over the ranks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from engine import report
from engine.config import ModelConfig, TrainConfig
from engine.run import Run

pytestmark = pytest.mark.mpi


def train(session, dataset, tmp_path) -> tuple[Path, list[dict]]:
    out = Path(session.comm.bcast(str(tmp_path), root=0)) / "run"
    model = ModelConfig(embedding_size=6, hidden_size=5)
    some = {"data": str(dataset), "out": str(out), "epochs": 2, "batch_size": 48, "log_every": 1, "model": model}
    Run(TrainConfig(**some, schedule="inverse"), session).train()
    session.comm.Barrier()
    return out, [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_a_run_leaves_a_report_of_what_its_ranks_did(session, dataset, tmp_path):
    out, events = train(session, dataset, tmp_path)
    page = (out / "report.html").read_text()
    assert "finished" in page
    assert "not recorded</td>" not in page
    epochs = [event for event in events if event["event"] == "epoch"]
    timelines = [event for event in events if event["event"] == "timeline"]
    assert len(epochs) == len(timelines) == 2
    for epoch, times in zip(epochs, timelines, strict=True):
        steps = times["ends"][-1] - times["first_step"] + 1
        assert times["ends"][-1] == epoch["step"]
        assert times["seconds"] == pytest.approx(epoch["seconds"])
        assert sum(map(sum, times["rows"])) == epoch["rows"]
        for name in ("compute_seconds", "input_seconds", "wait_seconds"):
            assert list(map(sum, times[name])) == pytest.approx(epoch[name], rel=1e-4)
        assert times["longest_compute_seconds"] >= max(epoch["compute_seconds"])
        assert times["longest_ready_seconds"] <= times["seconds"]
        assert times["least_wait_seconds"] <= min(epoch["wait_seconds"]) * (1 + 1e-9)
        assert sum(times["last_steps"]) >= steps
    rates = [event["learning_rate"] for event in events if event["event"] == "step"]
    per_epoch = epochs[0]["step"]
    assert rates == pytest.approx([0.004 / (1 + done / per_epoch) for done in range(2 * per_epoch)])
    assert "Learning rate" in page
    if session.size > 1:
        (profile,) = [event["points"] for event in events if event["event"] == "profile"]
        assert len(profile) == session.size
        assert all(profile)


def test_a_report_that_fails_changes_nothing_else(session, dataset, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(report, "write_report", lambda *_: 1 / 0)
    out, events = train(session, dataset, tmp_path)
    assert events[-1]["status"] == "finished"
    assert not (out / "report.html").exists()
    if session.root:
        assert capsys.readouterr().out.count("division by zero") == 1
