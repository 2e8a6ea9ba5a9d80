"""`python -m engine.evaluate`: how good a checkpoint is on a split, beside always answering the most frequent class."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engine.command import run_alone
from engine.command_line import make_parser
from engine.errors import UsageError
from engine.losses import CLASS_NAMES
from engine.saved_model import load_model
from engine.validation import measure
from native.dataset import open_dataset
from native.text import SPLITS

PROGRAM = "engine.evaluate"


def main(arguments: Sequence[str] | None = None) -> int:
    """Evaluate as the command line says; returns the exit status."""
    parser = make_parser("python -m engine.evaluate", "Measure a checkpoint on a split of a dataset.")
    parser.add_argument("--data", required=True, metavar="DATA", help="dataset folder made by python -m mr")
    parser.add_argument("--checkpoint", required=True, metavar="PATH", help="such as RUN/checkpoints/best")
    parser.add_argument("--split", default="test", choices=SPLITS, help="which part of the dataset")
    parser.add_argument("--batch-size", type=int, default=512, metavar="B", help="rows computed at once")
    parser.add_argument(
        "--device", default="auto", choices=("auto", "cpu", "cuda"), help="auto takes a GPU if there is one"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line")

    def work() -> None:
        options = parser.parse_args(arguments)
        figures = evaluate(options.data, options.checkpoint, options.split, options.batch_size, options.device)
        print(json.dumps(figures) if options.json else describe(figures))

    return run_alone(PROGRAM, work)


def evaluate(
    data: str, checkpoint: str, split: str = "test", batch_size: int = 512, device: str = "auto"
) -> dict[str, Any]:
    """Figures of a checkpoint on a split: accuracy, macro_f1, loss, null_accuracy, confusion, rows, ...

    Raises:
        UsageError: the split is empty, or the dataset's words are not those of the model.
        DatasetError, CheckpointError: missing or damaged files.
    """
    import torch

    if batch_size < 1:
        raise UsageError("--batch-size must be at least 1")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: this host shows no GPU to torch; use --device cpu")
    saved = load_model(Path(checkpoint), device)
    with open_dataset(data, split) as opened:
        if hashlib.sha256(saved.vocabulary_bytes).hexdigest() != opened.manifest["vocabulary"]["digest"]:
            raise UsageError(
                f"{data}: its vocabulary is not that of {checkpoint}, so its numbers are other words; encode the "
                "reviews with python -m mr --vocabulary-from the dataset that the model was trained on"
            )
        if not len(opened):
            raise UsageError(f"{data}: the split {split!r} has no rows; name another --split")
        figures = measure(saved.model, saved.loss, opened, batch_size, torch.device(device))
    return {**figures, "split": split, "classes": list(CLASS_NAMES[saved.config.classes])}


def describe(figures: dict[str, Any]) -> str:
    """The figures as a table for people."""
    names = figures["classes"]
    width = max(len(name) for name in names)
    lines = [
        f"{figures['rows']:,} rows of the {figures['split']} split, loss {figures['loss']:.4f}",
        f"{'':24}{'accuracy':>10}{'macro-F1':>10}",
        f"{'this model':24}{figures['accuracy']:10.4f}{figures['macro_f1']:10.4f}",
        f"{'most frequent class':24}{figures['null_accuracy']:10.4f}{figures['null_macro_f1']:10.4f}",
        "",
        f"{'class':{width}}{'precision':>11}{'recall':>9}{'F1':>9}   answered as " + ", ".join(names),
    ]
    for name, precision, recall, f1, counts in zip(
        names, figures["precision"], figures["recall"], figures["f1"], figures["confusion"], strict=True
    ):
        lines.append(f"{name:{width}}{precision:11.4f}{recall:9.4f}{f1:9.4f}   " + ", ".join(f"{c:,}" for c in counts))
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
