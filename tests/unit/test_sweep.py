"""What a sweep tries, how it is judged, and a whole sweep on one rank."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from engine.errors import UsageError
from engine.sweep import main
from engine.sweep_space import Range, Trial, make_trials, parse_values
from engine.sweep_table import by_setting, read_outcome, table, to_json
from tests.synthetic import write_dataset

ROOT = Path(__file__).parents[2]


def test_every_combination_with_every_seed():
    values = [parse_values("learning-rate=0.001,0.002"), parse_values("cell=lstm,gru")]
    trials = make_trials(values, 0, [7, 8], 7)
    assert [dict(trial.settings) | {"seed": trial.seed} for trial in trials] == [
        {"learning_rate": rate, "cell": cell, "seed": seed}
        for rate in ("0.001", "0.002")
        for cell in ("lstm", "gru")
        for seed in (7, 8)
    ]
    assert len({trial.name for trial in trials}) == 8


def test_draws_are_the_same_however_many_are_made():
    values = [
        parse_values("learning_rate=0.0001..0.01"),
        parse_values("hidden_size=16..64"),
        parse_values("cell=lstm,gru"),
    ]
    some, more = (make_trials(values, count, [7], 5) for count in (5, 40))
    assert [trial.settings for trial in some] == [trial.settings for trial in more][:5]
    assert [t.settings for t in make_trials(values, 5, [7], 6)] != [t.settings for t in some]
    drawn = [dict(trial.settings) for trial in more]
    rates = sorted(float(one["learning_rate"]) for one in drawn)
    assert rates[0] >= 0.0001
    assert rates[-1] <= 0.01
    assert 8 <= sum(rate < 0.001 for rate in rates) <= 32  # half of the logarithmic range
    assert all(16 <= int(one["hidden_size"]) <= 64 for one in drawn)
    assert {one["cell"] for one in drawn} == {"lstm", "gru"}


def test_a_range_is_even_where_it_reaches_0():
    assert Range(0.0, 0.5, whole=False).value(0.5) == "0.25"
    assert Range(1.0, 100.0, whole=True).value(0.5) == "10"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dropout", "write NAME="),
        ("=1,2", "write NAME="),
        ("seed=1,2", "not for trying"),
        ("out=a,b", "not for trying"),
        ("dropout=a..b", "two numbers"),
        ("dropout=0.5..0.1", "from a smaller to a larger"),
        ("dropout=0..inf", "from a smaller to a larger"),
    ],
)
def test_what_cannot_be_tried_is_told(text, message):
    with pytest.raises(UsageError, match=message):
        parse_values(text)


def test_a_range_without_draws_and_an_option_twice_are_told():
    with pytest.raises(UsageError, match="--random"):
        make_trials([parse_values("dropout=0..0.5")], 0, [7], 7)
    with pytest.raises(UsageError, match="dropout twice"):
        make_trials([parse_values("dropout=0,0.1"), parse_values("dropout=0.2")], 0, [7], 7)


def test_a_setting_that_training_refuses_is_told_before_any_training(tmp_path, capsys):
    out = tmp_path / "sweep"
    status = main(["--data", "D", "--out", str(out), "--try", "dropout=0.1,2"])
    assert status == 2
    assert "the trial dropout=2: --dropout must be" in capsys.readouterr().err
    assert not out.exists()


def write_metrics(folder: Path, scores: list[float], end: dict[str, Any] | None, torn: bool = False) -> None:
    folder.mkdir(parents=True)
    events: list[dict[str, Any]] = [{"event": "start", "step": 0}]
    for number, score in enumerate(scores):
        validation = {"macro_f1": score, "accuracy": score + 0.05, "loss": 1 - score}
        events.append({"event": "epoch", "step": number, "epoch": number + 1, "seconds": 2.0, "validation": validation})
    events += [end] if end else []
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, events)) + ('\n{"eve' if torn else "\n"))


def test_trials_are_judged_by_their_best_epoch_and_gathered_by_setting(tmp_path):
    finished = {"event": "end", "step": 9, "status": "finished"}
    trials = make_trials([parse_values("cell=lstm,gru,other")], 0, [1, 2], 1)
    write_metrics(tmp_path / "0", [0.5, 0.7, 0.6], finished)
    write_metrics(tmp_path / "1", [0.8], finished)
    write_metrics(tmp_path / "2", [0.9], finished)
    write_metrics(tmp_path / "3", [0.99], None, torn=True)
    write_metrics(tmp_path / "4", [], {"event": "end", "step": 3, "status": "failed", "error": "loss is nan"})
    lines = by_setting([read_outcome(trial, tmp_path / str(n)) for n, trial in enumerate(trials)])
    assert [dict(line.settings)["cell"] for line in lines] == ["gru", "lstm", "other"]
    gru, lstm, other = lines
    assert (gru.score, gru.spread) == (0.9, None)  # what is not finished does not count
    assert lstm.score == pytest.approx(0.75)
    assert lstm.spread == pytest.approx(0.0707, abs=1e-4)
    assert (lstm.mean("epoch"), lstm.mean("seconds")) == (1.5, 4.0)
    assert [o.state for o in other.outcomes] == ["failed: loss is nan", "unfinished"]
    text = table(lines)
    assert "1 of 2" in text
    assert "loss is nan" in text
    assert [line["macro_f1"] for line in to_json(lines)] == [0.9, pytest.approx(0.75), None]


def sweep(data: Path, out: Path, *more: object) -> subprocess.CompletedProcess[str]:
    root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    sizes = [
        "--epochs",
        2,
        "--batch-size",
        128,
        "--hidden-size",
        4,
        "--embedding-size",
        4,
        "--threads",
        1,
        "--ngram-entries",
        500,
    ]
    command = ["-m", "engine.sweep", "--data", data, "--out", out, "--device", "cpu", *sizes, *more]
    return subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=ROOT,
        env={**os.environ, **root, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_a_whole_sweep_goes_on_with_more_and_keeps_to_its_budget(tmp_path):
    data, out = tmp_path / "data", tmp_path / "sweep"
    write_dataset(data)
    done = sweep(data, out, "--try", "learning-rate=0.01,1e9", "--optimizer", "sgd", "--clip-norm", 0)
    assert done.returncode == 0, done.stdout + done.stderr
    found = {one["settings"]["learning_rate"]: one for one in json.loads((out / "sweep.json").read_text())}
    assert found["0.01"]["trials"][0]["state"] == "finished"
    assert found["1e9"]["trials"][0]["state"].startswith(("failed", "finished"))
    kept = {path: path.read_bytes() for path in out.glob("trials/learning_rate=0.01*/metrics.jsonl")}
    assert len(kept) == 1
    # The same sweep with a second value and next to no time: what is done stays, what is new is left out.
    again = sweep(
        data, out, "--try", "learning-rate=0.01,0.02", "--optimizer", "sgd", "--clip-norm", 0, "--minutes", 1e-6
    )
    assert again.returncode == 0, again.stdout + again.stderr
    assert "left out" in again.stdout
    assert {path: path.read_bytes() for path in kept} == kept
    assert again.stdout.splitlines()[1].split()[0] == "0.01"


def test_a_trial_has_a_folder_of_a_plain_name():
    trial = Trial(1, (("data_x", "a/b"),), 3)
    assert trial.name == "data_x=a-b_seed=3"
