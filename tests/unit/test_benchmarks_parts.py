"""The comparison of the model's parts: it trains what it says, goes on where it was, and judges the defaults."""

from __future__ import annotations

import json

import pytest

from benchmarks import parts
from benchmarks.parts import PARTS, Part
from engine.command_line import parse_train_config
from mr.sample import main as make_sample


def test_every_change_is_one_that_the_engine_takes_and_that_is_no_default():
    plain = parse_train_config(["--data", "D", "--out", "R", *parts.BASE]).to_json()
    assert len({part.name for part in PARTS}) == len(PARTS)
    assert PARTS[0].options == PARTS[0].data == ()
    for part in PARTS[1:]:
        changed = parse_train_config(["--data", "D", "--out", "R", *parts.BASE, *part.options]).to_json()
        assert part.data or changed != plain, part.name
        assert len(part.options) in (0, 2, 4)


@pytest.fixture
def reviews(tmp_path):
    assert make_sample(["--out", str(tmp_path / "reviews.jsonl.gz"), "--rows", "300"]) == 0
    return str(tmp_path / "reviews.jsonl.gz")


def test_it_trains_all_seeds_of_all_parts_and_goes_on_where_it_was(reviews, tmp_path, monkeypatch, capsys):
    small = {"embedding-size": 8, "hidden-size": 4, "epochs": 1, "threads": 1, "batch-size": 64, "ngram-entries": 100}
    monkeypatch.setattr(
        parts, "BASE", tuple(word for name, value in small.items() for word in (f"--{name}", str(value)))
    )
    change = Part("GRU, few words", ("--cell", "gru"), ("--vocab-size", "9"))
    monkeypatch.setattr(parts, "PARTS", (Part("plain"), change))
    arguments = [reviews, "--out", str(tmp_path / "out"), "--seeds", "2", "--result", str(tmp_path / "parts.json")]
    assert parts.main(arguments) == 0
    shown = capsys.readouterr()
    found = json.loads(shown.out.splitlines()[-1])
    assert found == json.loads((tmp_path / "parts.json").read_text())
    assert [(one["name"], len(one["each"])) for one in found["parts"]] == [("plain", 2), ("GRU, few words", 2)]
    trials = tmp_path / "out" / "trials"
    configs = [json.loads(path.read_text()) for path in sorted(trials.glob("*/config.json"))]
    assert [(config["model"]["cell"], config["seed"]) for config in configs] == [
        ("lstm", 7),
        ("lstm", 8),
        ("gru", 7),
        ("gru", 8),
    ]
    before = {path: path.stat().st_mtime_ns for path in trials.glob("*/checkpoints/step-*")}
    assert parts.main(arguments) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["parts"] == found["parts"]
    assert {path: path.stat().st_mtime_ns for path in trials.glob("*/checkpoints/step-*")} == before


def test_only_what_a_result_lacks_is_added(tmp_path, monkeypatch, capsys):
    trained: list[str] = []

    def measure(reviews, out, chosen, seeds, jobs):
        trained.extend(part.name for part in chosen)
        one = {"macro_f1": 0.5, "macro_f1_deviation": 0.1, "accuracy": 0.6, "seconds": 1.0}
        return [{"name": part.name, "options": [*part.options, *part.data], **one} for part in chosen]

    monkeypatch.setattr(parts, "measure", measure)
    arguments = ["x", "--out", str(tmp_path), "--result", str(tmp_path / "parts.json"), "--add"]
    assert parts.main(arguments) == 2
    assert "cannot be added to" in capsys.readouterr().err
    monkeypatch.setattr(parts, "PARTS", (Part("plain"), Part("b", ("--cell", "gru"))))
    assert parts.main(arguments[:-1]) == 0
    monkeypatch.setattr(parts, "PARTS", (Part("plain"), Part("a", ("--layers", "2")), Part("b", ("--cell", "lstm"))))
    trained.clear()
    assert parts.main(arguments) == 0
    assert trained == ["a", "b"]  # b is another change now
    assert [one["name"] for one in json.loads((tmp_path / "parts.json").read_text())["parts"]] == ["plain", "a", "b"]
    assert parts.main([*arguments, "--seeds", "5"]) == 2
    assert "another number of seeds" in capsys.readouterr().err


def test_what_fails_is_told_in_a_line(tmp_path, capsys):
    assert parts.main([str(tmp_path / "none.jsonl"), "--out", str(tmp_path / "out")]) == 2
    assert "mr ended with status 2" in capsys.readouterr().err
    assert parts.main(["--out", str(tmp_path / "out")]) == 2
    assert "REVIEWS" in capsys.readouterr().err
