"""`python -m engine.predict`: label and probability for texts; needs neither Horovod nor MPI."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from engine.command import run_alone
from engine.config import make_parser
from engine.losses import CLASS_NAMES
from engine.saved_model import SavedModel, load_model
from native.text import Encoder, TextSettings

PROGRAM = "engine.predict"
_BATCH = 256


def main(arguments: Sequence[str] | None = None) -> int:
    """Predict as the command line says; returns the exit status."""
    parser = make_parser("python -m engine.predict", "Tell the class of each text, or of each line of standard input.")
    parser.add_argument("text", nargs="*", metavar="TEXT", help="texts; without any, lines of standard input are read")
    parser.add_argument("--checkpoint", required=True, metavar="PATH", help="such as RUN/checkpoints/best")
    parser.add_argument("--json", action="store_true", help="one JSON object per text: label, probability, text")

    def work() -> None:
        options = parser.parse_args(arguments)
        saved = load_model(Path(options.checkpoint))
        for answer in predict(saved, options.text or (line.rstrip("\r\n") for line in sys.stdin)):
            if options.json:
                print(json.dumps(answer))
            else:
                probability = "" if answer["probability"] is None else f"{answer['probability']:.3f}"
                print(f"{answer['label']}\t{probability}\t{answer['text']}")

    return run_alone(PROGRAM, work)


def predict(saved: SavedModel, texts: Iterable[str]) -> Iterator[dict[str, Any]]:
    """Label, probability (None for mean squared error) and text, in the order of the texts.

    A text without any word is labelled "unknown", with probability 0: there is nothing to judge.
    """
    encoder = Encoder(saved.vocabulary, TextSettings.from_json(saved.text))
    names = CLASS_NAMES[saved.config.classes]
    source = iter(texts)
    while block := list(islice(source, _BATCH)):
        encoded = [encoder.encode(text) for text in block]
        some = [ids for ids in encoded if ids]
        answers = iter(_classify(saved, some))
        for text, ids in zip(block, encoded, strict=True):
            number, probability = next(answers) if ids else (None, 0.0)
            yield {"label": "unknown" if number is None else names[number], "probability": probability, "text": text}


@torch.inference_mode()
def _classify(saved: SavedModel, encoded: list[list[int]]) -> list[tuple[int, float | None]]:
    if not encoded:
        return []
    lengths = torch.tensor([len(ids) for ids in encoded])
    tokens = torch.zeros(len(encoded), int(lengths.max()), dtype=torch.long)
    for row, ids in enumerate(encoded):
        tokens[row, : len(ids)] = torch.tensor(ids)
    scores = saved.model(tokens, lengths)
    labels = saved.loss.predict(scores).tolist()
    probabilities = saved.loss.probabilities(scores)
    if probabilities is None:
        return [(label, None) for label in labels]
    return [(label, float(row[label])) for label, row in zip(labels, probabilities, strict=True)]


if __name__ == "__main__":
    sys.exit(main())
