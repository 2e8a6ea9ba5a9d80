"""benchmarks.predict tells rates of the real command, and a plain line where it cannot. Never how fast."""

from __future__ import annotations

import json

from benchmarks import predict
from engine.config import ModelConfig
from mr.sample import main as make_sample
from tests.checkpoints import write_checkpoint


def test_it_ends_with_its_figures(tmp_path, capsys):
    reviews = tmp_path / "reviews.jsonl.gz"
    assert make_sample(["--out", str(reviews), "--rows", str(predict.WITH_WORDS + 100)]) == 0
    config = ModelConfig(embedding_size=4, hidden_size=3, ngram_entries=100)
    checkpoint = write_checkpoint(tmp_path / "best", config)
    arguments = ["--checkpoint", str(checkpoint), str(reviews), "--rounds", "1", "--result", str(tmp_path / "result")]
    assert predict.main(arguments) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found == json.loads((tmp_path / "result").read_text())
    assert found["texts"] == predict.WITH_WORDS + 100
    assert found["start_seconds"] > 0
    assert predict.rate(100, 0.5) == 200
    assert predict.rate(100, -0.5) is None


def test_what_fails_is_told_in_a_line(tmp_path, capsys):
    few = tmp_path / "few.jsonl"
    few.write_text('{"reviewText": "fine", "overall": 5}\n')
    assert predict.main(["--checkpoint", str(tmp_path / "none"), str(few)]) == 2
    assert "there is no such checkpoint" in capsys.readouterr().err
    checkpoint = write_checkpoint(tmp_path / "best", ModelConfig(embedding_size=4, hidden_size=3, ngram_entries=100))
    assert predict.main(["--checkpoint", str(checkpoint), str(few)]) == 2
    assert "1 reviews are too few" in capsys.readouterr().err
