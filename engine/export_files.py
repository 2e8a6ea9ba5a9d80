"""What lies beside an exported model: words, settings, a program that uses it, and how."""

from __future__ import annotations

import json
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from engine.export_source import stand_alone
from engine.losses import CLASS_NAMES
from engine.saved_model import SavedModel

HERE = Path(__file__).resolve().parent
NEEDS = {"torchscript": "torch", "onnx": "onnxruntime"}
PROGRAM = "predict.py"


def write_files(saved: SavedModel, kind: str, model: str, folder: Path) -> None:
    """Write vocabulary.txt, settings.json, predict.py and README.md.

    Args:
        saved: the model.
        kind: of engine.export.FORMATS.
        model: name of the file with the exported model.
        folder: exists.
    """
    needs = f"{NEEDS[kind]} {version(NEEDS[kind])}"
    settings = {
        "format": kind,
        "classes": list(CLASS_NAMES[saved.config.classes]),
        "probabilities": saved.config.loss != "mse",
        "text": saved.text,
        "model": asdict(saved.config),
        "made_with": {"torch": version("torch"), NEEDS[kind]: version(NEEDS[kind])},
    }
    (folder / "vocabulary.txt").write_bytes(saved.vocabulary_bytes)
    (folder / "settings.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    (folder / PROGRAM).write_text(program(kind), encoding="utf-8")
    (folder / "README.md").write_text(_readme(settings, needs, model), encoding="utf-8")


def program(kind: str) -> str:
    """The source of the program for a format: it imports torch, or onnxruntime and numpy, and the standard library."""
    template = (HERE / "export_example.py").read_text(encoding="utf-8")
    runner = f"engine.export_{kind}"
    template = template.replace("from engine.export_torchscript import", f"from {runner} import")
    parts = {
        "native.words": (HERE.parent / "native" / "words.py").read_text(encoding="utf-8"),
        runner: (HERE / f"export_{kind}.py").read_text(encoding="utf-8"),
    }
    return stand_alone(template, parts)


def _readme(settings: dict[str, Any], needs: str, model: str) -> str:
    classes = ", ".join(f"{number} {name}" for number, name in enumerate(settings["classes"]))
    limit = settings["text"]["max_length"]
    values = (
        "`values`, float [texts, classes]: the probability of each class"
        if settings["probabilities"]
        else "`values`, float [texts]: what the model gives, on the scale of the classes; it knows no probabilities"
    )
    packages = "onnxruntime numpy" if settings["format"] == "onnx" else "torch"
    return f"""# A text classifier

Tells these classes apart: {classes}.
Made and checked with {needs}. It needs nothing else:

    pip install {packages}
    python {PROGRAM} "Not good at all."
    python {PROGRAM} --json < texts.txt          # a text a line

| file | |
|---|---|
| {model} | the model |
| vocabulary.txt | its words, one a line: line i, counted from 0, is word number i + 2 |
| settings.json | classes, how texts become words, how the model was configured |
| {PROGRAM} | a program and an example: texts to numbers, numbers to the model, labels out; Python 3.10 or newer |

The model takes `tokens`, int64 [texts, words]: word numbers, 1 for an unknown word, padded on the right with 0; and
`lengths`, int64 [texts]: words of each text, at least 1. It gives `labels`, int64 [texts]: the most probable class, and
{values}.
A text's words are found by `normalize` in {PROGRAM}; those after the first {limit:,} are not read. A text without any
word never goes to the model.
"""
