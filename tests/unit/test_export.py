"""Exported models answer as the checkpoint does, for every configuration, in a program that needs nothing of ours."""

from __future__ import annotations

import ast
import importlib.util
import itertools
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from engine import export, export_check
from engine.config import ModelConfig
from engine.errors import TrainingError
from engine.export_files import program
from engine.export_model import FORMATS, Judge, export_model
from engine.export_source import stand_alone
from engine.losses import ReviewLoss
from engine.predictor import Predictor
from engine.saved_model import load_model
from native.text import normalize
from tests.checkpoints import WORDS, write_checkpoint
from tests.text_fuzz import PIECES

SMALL = {"embedding_size": 6, "hidden_size": 5}
LOSSES = [("bce", 2), ("cross_entropy", 2), ("cross_entropy", 5), ("mse", 2), ("mse", 5)]
KINDS = list(itertools.product(("lstm", "gru"), (1, 2), (1, 2), ("last", "mean", "max"), ("torchscript", "onnx")))
# As on a machine that has neither.
WITHOUT_MPI = """
import sys
sys.modules["horovod"] = sys.modules["mpi4py"] = sys.modules["mr"] = None
from engine.export import main
sys.exit(main(sys.argv[1:]))
"""
PACKAGES = {"torchscript": {"torch"}, "onnx": {"onnxruntime", "numpy"}}


def runner(kind: str):
    if kind == "onnx":
        pytest.importorskip("onnxruntime")
    return pytest.importorskip(f"engine.export_{kind}")


def off_by(tmp_path: Path, config: ModelConfig, kind: str, precision: str = "float32") -> float:
    """Largest difference of an exported model on batches of several shapes; above 1e-5 it is an error."""
    saved = load_model(write_checkpoint(tmp_path / "best", config, precision=precision))
    export_model(saved, kind, tmp_path)
    return export_check._compare_shapes(
        Judge(saved.model, saved.loss), len(WORDS) + 2, runner(kind).open_model(tmp_path)
    )


@pytest.mark.parametrize(("cell", "layers", "directions", "pooling", "kind"), KINDS)
def test_every_model_gives_the_same_in_batches_of_any_shape(tmp_path, cell, layers, directions, pooling, kind):
    runner(kind)
    config = ModelConfig(cell=cell, layers=layers, directions=directions, pooling=pooling, **SMALL)
    assert off_by(tmp_path, config, kind) < 1e-5


@pytest.mark.parametrize("kind", ["torchscript", "onnx"])
@pytest.mark.parametrize(("loss", "classes"), LOSSES)
def test_every_loss_and_float64_give_the_same(tmp_path, loss, classes, kind):
    runner(kind)
    config = ModelConfig(loss=loss, classes=classes, **SMALL)
    assert off_by(tmp_path, config, kind) < 1e-5
    # onnxruntime computes in float32.
    assert off_by(tmp_path, config, kind, "float64") < (1e-12 if kind == "torchscript" else 1e-5)


class OtherModel(nn.Module):
    """Not ours: attention, two poolings, hashed pairs of words."""

    def __init__(self, mix: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.embedding, self.pairs = nn.Embedding(len(WORDS) + 2, 8), nn.Embedding(97, 4)
        self.layer, self.attention, self.head = nn.GRU(8, 6), nn.Linear(6, 1), nn.Linear(16, 1)
        self.mix = mix

    def forward(self, tokens: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        states = self.layer(self.embedding(tokens.t()))[0]
        padding = torch.arange(tokens.shape[1]).unsqueeze(1) >= lengths
        weights = self.attention(states).squeeze(2).masked_fill(padding, float("-inf")).softmax(dim=0)
        attended = (weights.unsqueeze(2) * states).sum(dim=0)
        largest = states.masked_fill(padding.unsqueeze(2), float("-inf")).amax(dim=0)
        before = nn.functional.pad(tokens, (1, 0))[:, :-1]
        pairs = self.pairs(self.mix(tokens * 2654435761, before * 40503) % 97) * (tokens > 0).unsqueeze(2)
        return self.head(torch.cat((attended, largest, pairs.sum(dim=1)), dim=1)).squeeze(1)


@pytest.mark.parametrize("kind", ["torchscript", "onnx"])
def test_a_model_of_another_kind_is_exported_too(tmp_path, kind):
    opener = runner(kind).open_model
    torch.manual_seed(1)
    saved = SimpleNamespace(model=OtherModel(torch.add).eval(), loss=ReviewLoss(ModelConfig()))
    export_model(saved, kind, tmp_path)
    judge = Judge(saved.model, saved.loss)
    assert export_check._compare_shapes(judge, len(WORDS) + 2, opener(tmp_path)) < 1e-5


def test_what_onnx_cannot_do_is_told_in_one_line(tmp_path, capfd):
    runner("onnx")
    saved = SimpleNamespace(model=OtherModel(torch.bitwise_xor).eval(), loss=ReviewLoss(ModelConfig()))
    with pytest.raises(TrainingError, match=r"cannot become ONNX .*take --format torchscript"):
        export_model(saved, "onnx", tmp_path)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("kind", "loss", "classes"), [("torchscript", "bce", 2), ("torchscript", "mse", 5), ("onnx", "cross_entropy", 5)]
)
def test_the_exported_folder_works_alone(tmp_path, kind, loss, classes):
    runner(kind)
    config = ModelConfig(loss=loss, classes=classes, **SMALL)
    checkpoint = write_checkpoint(tmp_path / "best", config, stop_words=("the", "caf\u00e9"))
    out = tmp_path / "deep" / "exported"
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_MPI, "--checkpoint", checkpoint, "--out", out, "--format", kind],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "gives the answers of" in done.stdout
    assert {path.name for path in out.iterdir()} == {
        "README.md", "predict.py", "settings.json", "vocabulary.txt", FORMATS[kind],
    }  # fmt: skip
    elsewhere = out.rename(tmp_path / "elsewhere")
    texts = ["Not good, it&#39;s BAD!", "", "the caf\u00e9 the", "\U0001f600 refund " * 60, "unheard of"]
    done = subprocess.run(
        [sys.executable, "predict.py", "--json", *texts],
        cwd=elsewhere,
        env={"PATH": "/usr/bin:/bin"},
        capture_output=True,
        check=True,
    )
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    expected = Predictor(load_model(checkpoint)).answer(texts)
    assert [answer["label"] for answer in answers] == [answer.label for answer in expected]
    assert answers[1]["label"] == answers[2]["label"] == "unknown"
    for answer, wanted in zip(answers, expected, strict=True):
        assert answer["probability"] == pytest.approx(wanted.probability, abs=1e-6)
        assert answer["text"] == wanted.text


@pytest.mark.parametrize("kind", ["torchscript", "onnx"])
def test_the_program_imports_what_its_readme_says_and_nothing_else(kind):
    tree = ast.parse(program(kind))
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.partition(".")[0] for name in names} - sys.stdlib_module_names == PACKAGES[kind]


def test_the_programs_words_are_ours(tmp_path):
    path = tmp_path / "predict.py"
    path.write_text(program("torchscript"))
    spec = importlib.util.spec_from_file_location("exported", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert not hasattr(module, "WordCounter")  # it is not used there
    random = Random(5)
    for _ in range(20_000):
        text = "".join(random.choice(PIECES) + random.choice(["", " "]) for _ in range(random.randint(1, 6)))
        assert module.normalize(text) == normalize(text), text


def test_only_what_is_used_is_put_in():
    part = 'import re\nimport os\n# Why.\nA = 1\n"""what A is"""\nB = 2\n\n\ndef f():\n    return A\n'
    part += "\n\ndef g():\n    return re\n"
    source = stand_alone('#!/bin/x\n"""Doc."""\nimport sys\nfrom part import f\n\nprint(f(), sys)\n', {"part": part})
    assert source.startswith('#!/bin/x\n"""Doc."""\n')
    assert '# Why.\nA = 1\n"""what A is"""\n' in source
    for gone in ("import re", "import os", "B = 2", "def g", "from part"):
        assert gone not in source
    with pytest.raises(ValueError, match="part defines no h"):
        stand_alone("from part import h\n", {"part": part})


def test_a_model_that_answers_otherwise_is_not_delivered(tmp_path, capsys, monkeypatch):
    checkpoint = write_checkpoint(tmp_path / "best", ModelConfig(**SMALL))

    def export_another(saved, kind, folder):
        with torch.no_grad():
            saved.model.head.bias += 1e-3
        path = export_model(saved, kind, folder)
        with torch.no_grad():
            saved.model.head.bias -= 1e-3
        return path

    monkeypatch.setattr("engine.export_model.export_model", export_another)
    assert export.main(["--checkpoint", str(checkpoint), "--out", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "the exported model is off by" in error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best"]


def test_a_program_that_answers_otherwise_is_not_delivered(tmp_path, capsys, monkeypatch):
    checkpoint = write_checkpoint(tmp_path / "best", ModelConfig(**SMALL))
    for broken, message in [
        (("text = prepare(text)", "text = prepare(text) + ' good'"), "the exported model answers"),
        (("order.pop()", "order.nop()"), "does not run here (AttributeError"),
    ]:
        monkeypatch.setattr("engine.export_files.program", lambda kind, broken=broken: program(kind).replace(*broken))
        assert export.main(["--checkpoint", str(checkpoint), "--out", str(tmp_path / "out")]) == 1
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert message in error
        assert not (tmp_path / "out").exists()


def test_errors_are_one_line_with_status_2(tmp_path, capsys, monkeypatch):
    checkpoint = write_checkpoint(tmp_path / "best", ModelConfig(**SMALL))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    monkeypatch.setattr(export, "find_spec", lambda name: None)
    for arguments, message in [
        (["--checkpoint", str(tmp_path / "none"), "--out", str(tmp_path / "out")], "no such checkpoint"),
        (["--checkpoint", str(checkpoint)], "--out"),
        (["--checkpoint", str(checkpoint), "--out", str(tmp_path / "full")], "is there already"),
        (["--checkpoint", str(checkpoint), "--out", str(checkpoint)], "is there already"),
        (["--checkpoint", str(checkpoint), "--out", str(checkpoint / "x")], "cannot be written"),
        (["--checkpoint", str(checkpoint), "--out", str(tmp_path / "o"), "--format", "onnx"], "uneven-engine[onnx]"),
        (["--checkpoint", str(checkpoint), "--out", str(tmp_path / "o"), "--format", "gguf"], "invalid choice"),
    ]:
        assert export.main(arguments) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert message in error
