"""predict: answers in the order of the texts, the words that spoke for them, and what a user sees go wrong."""

from __future__ import annotations

import io
import json
import re
import signal
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest
import torch

from engine import predict, predict_batches
from engine.config import ModelConfig
from engine.losses import CLASS_NAMES
from engine.predictor import Predictor, _as_written
from engine.saved_model import SavedModel, load_model
from tests.checkpoints import WORDS, write_checkpoint

ROOT = Path(__file__).parents[2]
SMALL = {"embedding_size": 6, "hidden_size": 5}
# As on a machine that has neither.
WITHOUT_MPI = """
import sys
sys.modules["horovod"] = sys.modules["mpi4py"] = sys.modules["mr"] = None
from engine.predict import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("predict") / "best", ModelConfig(**SMALL))


def command(checkpoint: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "engine.predict", "--checkpoint", str(checkpoint), *arguments]


def test_the_order_of_the_texts_is_kept_whatever_the_batches(checkpoint, monkeypatch):
    texts = [" ".join(WORDS[(i * j) % len(WORDS)] for j in range(i * 7 % 23)) for i in range(60)]
    together = Predictor(load_model(checkpoint)).answer(texts)
    assert [answer.text for answer in together] == texts
    assert {answer.label for answer in together} == {"negative", "positive", "unknown"}
    monkeypatch.setattr(predict_batches, "BATCH_TOKENS", 1)
    alone = Predictor(load_model(checkpoint)).answer(texts)
    for one, other in zip(together, alone, strict=True):
        assert one.label == other.label
        assert one.probability == pytest.approx(other.probability, abs=1e-6)


def test_words_come_by_default_for_texts_and_not_for_lines(checkpoint, capsys, monkeypatch, tmp_path):
    base = ["--checkpoint", str(checkpoint)]
    assert predict.main([*base, "GOOD\tbad\n\x1b[31mrefund", ""]) == 0
    line, empty = capsys.readouterr().out.splitlines()
    label, probability, text, words = line.split("\t")
    assert label in ("negative", "positive")
    assert 0.5 <= float(probability) <= 1
    assert text == "GOOD bad [31mrefund"
    assert all(re.fullmatch(r"without (GOOD|bad|31mrefund) 0\.\d{3}", word) for word in words.split(", "))
    assert empty == "unknown\t0.000\t\t"
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"good\nbad\n")))
    assert predict.main(base) == 0
    assert [line.count("\t") for line in capsys.readouterr().out.splitlines()] == [2, 2]
    (tmp_path / "a.txt").write_text("great\n")
    assert predict.main([*base, "--json", "--file", str(tmp_path / "a.txt"), "good"]) == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [answer["text"] for answer in answers] == ["good", "great"]
    assert all(set(answer) == {"label", "probability", "text"} for answer in answers)
    assert predict.main([*base, "--json", "--words", "1", "--file", str(tmp_path / "a.txt")]) == 0
    assert len(json.loads(capsys.readouterr().out)["words"]) <= 1


def probability_of(saved: SavedModel, words: list[str], label: str) -> float:
    """Of a label for a text of these words, straight from the model."""
    ids = [WORDS.index(word) + 2 if word in WORDS else 1 for word in words]
    probabilities = saved.loss.probabilities(saved.model(torch.tensor([ids]), torch.tensor([len(ids)])))
    return float(probabilities[0, CLASS_NAMES[saved.config.classes].index(label)])


@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize(("loss", "classes"), [("bce", 2), ("cross_entropy", 2), ("cross_entropy", 5)])
def test_a_word_shows_what_the_rest_of_the_text_says_without_it(tmp_path, cell, loss, classes):
    config = ModelConfig(cell=cell, loss=loss, classes=classes, pooling="mean", **SMALL)
    saved = load_model(write_checkpoint(tmp_path / "best", config, stop_words=("the",), max_length=12))
    random = Random(3)
    choices = [*WORDS[:7], "unheard", "odd"]  # no more than are tried, so that every word is
    texts = [" ".join(random.choice(choices) for _ in range(random.randint(1, 30))) for _ in range(40)]
    shown = 0
    for answer in Predictor(saved, 4).answer(texts):
        if answer.label == "unknown":
            continue
        read = [word for word in answer.text.split() if word != "the"][:12]
        assert answer.probability == pytest.approx(probability_of(saved, read, answer.label), abs=1e-6)
        without = {
            word: probability_of(saved, [other for other in read if other != word] or ["odd"], answer.label)
            for word in read
        }
        for one in answer.words:
            assert one.without == pytest.approx(without[one.word], abs=1e-6)
        strongest = sorted(value for value in without.values() if value < answer.probability - 1e-6)[:4]
        assert [one.without for one in answer.words][: len(strongest)] == pytest.approx(strongest, abs=1e-6)
        shown += len(answer.words)
    assert shown > 40


def test_a_model_without_probabilities_names_words_too(tmp_path):
    saved = load_model(write_checkpoint(tmp_path / "best", ModelConfig(loss="mse", classes=5, **SMALL), spread=9.0))
    texts = [f"{one} {other} refund" for one in WORDS for other in WORDS]
    answers = Predictor(saved, 2).answer(texts)
    assert len({answer.label for answer in answers}) > 2
    assert all(answer.probability is None for answer in answers)
    # Nothing leads to the middle of the scale.
    assert {bool(answer.words) for answer in answers if answer.label == "3 stars"} == {False}
    assert any(answer.words for answer in answers if answer.label != "3 stars")
    assert all(word.without is None for answer in answers for word in answer.words)


def test_words_are_shown_as_they_stand_in_the_text():
    for text, word, shown in [
        ("ungood GOOD good", "good", "GOOD"),
        ("don\u2019t", "don't", "don't"),
        ("caf&eacute;", "caf\u00e9", "caf\u00e9"),
        ("\u0130 Good", "good", "good"),
        ("<b>Fine</b>", "fine", "Fine"),
    ]:
        assert _as_written(text, word) == shown


def test_it_starts_and_reads_lines_where_horovod_mpi_and_mr_are_missing(checkpoint):
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_MPI, "--checkpoint", str(checkpoint)],
        cwd=ROOT,
        input=b"good \xff\nbad",
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert [line.rpartition(b"\t")[2] for line in done.stdout.splitlines()] == ["good \ufffd".encode(), b"bad"]


def test_a_reader_that_has_had_enough_is_no_error(checkpoint, tmp_path):
    path = tmp_path / "many.txt"
    path.write_text("good bad great\n" * 30_000)
    with subprocess.Popen(
        command(checkpoint, "--file", str(path)), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == b""
    assert process.returncode == 0


def test_ctrl_c_is_one_line(checkpoint):
    with subprocess.Popen(
        command(checkpoint), cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"good\n")
        process.stdin.flush()
        assert process.stdout.readline().endswith(b"\tgood\n")  # answered while the input goes on
        process.send_signal(signal.SIGINT)
        process.stdin.close()
        assert process.stderr is not None
        assert process.stderr.read() == b"engine.predict: interrupted\n"
    assert process.returncode == 130


def test_errors_are_one_line_with_status_2(checkpoint, tmp_path, capsys, monkeypatch):
    base = ["--checkpoint", str(checkpoint)]
    for arguments, message in [
        ([], "--checkpoint"),
        (["--checkpoint", str(tmp_path / "none"), "good"], "no such checkpoint"),
        ([*base, "--words", "-1", "good"], "--words -1"),
        ([*base, "--words", "x", "good"], "--words"),
        ([*base, "--file", str(tmp_path / "none.txt"), "good"], "no such file"),
        ([*base, "--file", str(tmp_path)], "a folder"),
        ([*base, "--unknown"], "--unknown"),
    ]:
        assert predict.main(arguments) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.count("\n") == 1
        assert message in captured.err
    monkeypatch.setattr("sys.stdin", None)
    assert predict.main(base) == 2
    assert "standard input is closed" in capsys.readouterr().err
