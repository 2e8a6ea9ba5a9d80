"""evaluate and predict on a checkpoint, in one process; the loss scale of float16."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import native
from engine import evaluate, predict
from engine.checkpoint import Checkpoint, save_checkpoint
from engine.config import ModelConfig, TrainConfig
from engine.errors import UsageError
from engine.model import ReviewModel
from engine.precision import Precision
from tests.synthetic import write_dataset

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("commands") / "data"
    write_dataset(folder)
    return folder


@pytest.fixture(scope="module", params=["bce", "cross_entropy", "mse"])
def checkpoint(request, data, tmp_path_factory) -> Path:
    """A checkpoint of an untrained model, as engine.train writes it."""
    size = ModelConfig(
        embedding_size=4, hidden_size=3, loss=request.param, classes=2 if request.param == "bce" else 5, dropout=0.5
    )
    torch.manual_seed(1)
    with native.open_dataset(data) as opened:
        model = ReviewModel(size, opened.ids)
        words = (data / "vocabulary.txt").read_bytes()
        values = {
            "config": TrainConfig(data=str(data), out="run", model=size).to_json(),
            "class_weights": None,
            "text": opened.manifest["text"],
            "ids": opened.ids,
        }
    tensors = {f"model/{name}": tensor for name, tensor in model.state_dict().items()}
    tensors["vocabulary"] = torch.frombuffer(bytearray(words), dtype=torch.uint8)
    path = tmp_path_factory.mktemp("checkpoint") / "best"
    save_checkpoint(path, Checkpoint(tensors, values))
    return path


def test_evaluate_counts_what_predict_answers(data, checkpoint, capsys):
    assert evaluate.main(["--data", str(data), "--checkpoint", str(checkpoint), "--json", "--split", "test"]) == 0
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    with native.open_dataset(data, "test") as opened:
        batch, words = opened.read(range(len(opened))), opened.vocabulary()
    texts = [
        " ".join(words[i - 2] for i in row[:length]) for row, length in zip(batch.tokens, batch.lengths, strict=True)
    ]
    assert predict.main(["--checkpoint", str(checkpoint), "--json", *texts]) == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    classes = figures["classes"]
    confusion = np.zeros((len(classes), len(classes)), int)
    for stars, answer in zip(batch.stars, answers, strict=True):
        true = int(stars) - 1 if len(classes) == 5 else int(stars >= 4)
        confusion[true, classes.index(answer["label"])] += 1
    assert figures["confusion"] == confusion.tolist()
    assert figures["accuracy"] == pytest.approx(np.trace(confusion) / 83)
    assert figures["null_accuracy"] == pytest.approx(confusion.sum(axis=1).max() / 83)
    assert figures["rows"] == 83
    assert evaluate.main(["--data", str(data), "--checkpoint", str(checkpoint)]) == 0
    assert "most frequent class" in capsys.readouterr().out


def test_predict_reads_lines_and_answers_each(checkpoint, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("word1 word2\n\n\U0001f600 ~\r\n" + "word3 " * 3000 + "\n"))
    assert predict.main(["--checkpoint", str(checkpoint)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert lines[1].startswith("unknown\t0.000")
    assert not lines[3].startswith("unknown")


def test_errors_are_one_line_with_status_2(data, checkpoint, tmp_path, capsys):
    write_dataset(tmp_path / "other", words=70)
    for arguments, message in [
        (["--data", str(tmp_path), "--checkpoint", str(checkpoint)], "no dataset.json"),
        (["--data", str(data), "--checkpoint", str(tmp_path / "none")], "no such checkpoint"),
        (["--data", str(tmp_path / "other"), "--checkpoint", str(checkpoint)], "its vocabulary is not that of"),
        (["--data", str(data)], "--checkpoint"),
        (["--data", str(data), "--checkpoint", str(checkpoint), "--batch-size", "0"], "--batch-size"),
    ]:
        assert evaluate.main(arguments) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert message in error


def test_predict_needs_neither_horovod_nor_mpi(checkpoint, tmp_path):
    for name in ("horovod", "mpi4py"):
        (tmp_path / f"{name}.py").write_text("raise ImportError('not here')")
    done = subprocess.run(
        [sys.executable, "-m", "engine.predict", "--checkpoint", str(checkpoint), "word1 word2"],
        cwd=ROOT,
        env={"PYTHONPATH": f"{tmp_path}:{ROOT}", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "word1 word2" in done.stdout


def test_the_float16_loss_scale_falls_on_overflow_and_rises_again():
    precision = Precision("float16", torch.device("cuda"))
    start = precision.scale
    assert precision.overflowed(norm_is_finite=False)
    assert precision.scale == start / 2
    for _ in range(2000):
        assert not precision.overflowed(norm_is_finite=True)
    assert precision.scale == start
    again = Precision("float16", torch.device("cuda"))
    again.load_state(precision.state())
    assert again.state() == precision.state()
    while precision.overflowed(norm_is_finite=False):
        pass
    assert precision.scale < 1  # no matter of scale any more: the step is not skipped, the run stops
    with pytest.raises(UsageError, match="needs a GPU"):
        Precision("float16", torch.device("cpu"))
    assert not Precision("float32", torch.device("cpu")).overflowed(norm_is_finite=False)
