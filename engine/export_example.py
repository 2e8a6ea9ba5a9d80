#!/usr/bin/env python3
"""Judges texts with the model that lies beside this file, without the project that trained it.

    python predict.py "Not good at all." "Works like a charm."
    python predict.py [--json] < texts.txt          a text a line

Out of Python, with this folder on sys.path:

    from predict import Classifier
    classify = Classifier()
    classify(["Not good at all."])                  # [(label, probability)]
"""

from __future__ import annotations

import io
import json
import signal
import struct
import sys
from itertools import islice
from pathlib import Path

from engine.export_torchscript import open_model
from native.words import WordEncoder, normalize, to_ascii

BATCH_WORDS = 1 << 14
BLOCK_TEXTS = 4096


class Classifier:
    """Judges texts.

    Args:
        folder: with the model, settings.json and vocabulary.txt; None: the one of this file.
    """

    def __init__(self, folder: Path | None = None) -> None:
        folder = folder or Path(__file__).resolve().parent
        settings = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
        words = (folder / "vocabulary.txt").read_bytes().decode("utf-8").split("\n")[:-1]
        self.classes: list[str] = settings["classes"]
        self._has_probabilities: bool = settings["probabilities"]
        stop_words = [to_ascii(word) for word in settings["text"]["stop_words"]]
        self._encoder = WordEncoder([to_ascii(word) for word in words], stop_words, settings["text"]["max_length"], 4)
        self._run = open_model(folder)

    def __call__(self, texts: list[str]) -> list[tuple[str, float | None]]:
        """Label and probability of each text; the probability is None where the model has none.

        A text without any word is "unknown", with probability 0: there is nothing to judge.
        """
        rows = [self._ids(text) for text in texts]
        answers: list[tuple[str, float | None]] = [("unknown", 0.0)] * len(texts)
        # Texts of like length together: little of a batch is padding then.
        order = sorted((number for number, row in enumerate(rows) if row), key=lambda number: len(rows[number]))
        while order:
            length = len(rows[order[-1]])
            batch = [order.pop() for _ in range(min(len(order), max(1, BATCH_WORDS // length)))]
            padded = [rows[number] + [0] * (length - len(rows[number])) for number in batch]
            labels, values = self._run(padded, [len(rows[number]) for number in batch])
            for number, label, value in zip(batch, labels, values, strict=True):
                answers[number] = (self.classes[label], value[label] if self._has_probabilities else None)
        return answers

    def _ids(self, text: str) -> list[int]:
        encoded = self._encoder.encode(to_ascii(normalize(text)))
        return list(struct.unpack(f"<{len(encoded) // 4}I", encoded))


def main(arguments: list[str]) -> None:
    """Judge the texts of the command line, or the lines of standard input."""
    as_json = "--json" in arguments
    for stream in (sys.stdin, sys.stdout):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="replace", newline="\n")
    source = iter([text for text in arguments if text != "--json"] or (line.rstrip("\r\n") for line in sys.stdin))
    classify = Classifier()
    while block := list(islice(source, BLOCK_TEXTS)):
        for text, (label, probability) in zip(block, classify(block), strict=True):
            if as_json:
                print(json.dumps({"label": label, "probability": probability, "text": text}))
            else:
                print(label, "" if probability is None else f"{probability:.3f}", text, sep="\t")


if __name__ == "__main__":
    for name in ("SIGPIPE", "SIGINT"):  # a reader that has had enough, and Ctrl-C, end it without a traceback
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_DFL)
    main(sys.argv[1:])
