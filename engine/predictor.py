"""Judges texts with a trained model: raw texts in, answers out, in the same order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from engine.losses import CLASS_NAMES
from engine.predict_batches import batches, score
from engine.predict_words import SpokenWord, probabilities_of, speaking_words
from engine.saved_model import SavedModel
from native.text import Encoder, TextSettings, normalize, to_ascii


@dataclass(frozen=True, slots=True)
class Answer:
    """What the model says of a text."""

    label: str
    """name of the most probable class; "unknown" for a text without words"""
    probability: float | None
    """of the label; None where the loss was mean squared error, which has none; 0 for "unknown" """
    text: str
    words: tuple[SpokenWord, ...] = ()
    """those that spoke most for the label, as they first stand in the text, the strongest first"""


class Predictor:
    """Judges texts.

    Args:
        saved: the model, on the CPU.
        words: show up to so many words that spoke for the label; 0 for none, which is more than ten times as fast.
    """

    def __init__(self, saved: SavedModel, words: int = 0) -> None:
        self._saved, self._words = saved, words
        self._settings = TextSettings.from_json(saved.text)
        self._encoder = Encoder(saved.vocabulary, self._settings)
        self._stop_words = frozenset(self._settings.stop_words)
        self._names = CLASS_NAMES[saved.config.classes]

    def answer(self, texts: Sequence[str]) -> list[Answer]:
        """An answer for each text."""
        answers = [Answer("unknown", 0.0, text) for text in texts]
        normalized = [normalize(text) for text in texts]
        encoded = [np.frombuffer(self._encoder.encode_ascii(to_ascii(text)), "<i4") for text in normalized]
        for numbers in batches([len(ids) for ids in encoded]):
            some = [encoded[number] for number in numbers]
            scores = score(self._saved.model, some)
            labels_B = self._saved.loss.predict(scores)
            found: Sequence[Sequence[SpokenWord]] = [()] * len(some)
            if self._words:
                words = [self._read_words(normalized[number]) for number in numbers]
                found = speaking_words(self._saved, some, words, scores, labels_B, self._words)
            probabilities = probabilities_of(self._saved.loss, scores, labels_B)
            for number, label, probability, spoken in zip(
                numbers, labels_B.tolist(), probabilities, found, strict=True
            ):
                shown = tuple(SpokenWord(_as_written(texts[number], one.word), one.without) for one in spoken)
                answers[number] = Answer(self._names[label], probability, texts[number], shown)
        return answers

    def _read_words(self, normalized: str) -> list[str]:
        """The words that the ids of a text stand for, unknown ones included."""
        words = normalized.split(" ")
        if self._stop_words:
            words = [word for word in words if word not in self._stop_words]
        return words[: self._settings.max_length]


def _as_written(text: str, word: str) -> str:
    """A word as it first stands in the text, in capitals, say; as the model reads it where it cannot be found."""
    lowered = text.lower()
    start = lowered.find(word) if len(lowered) == len(text) else -1
    while start >= 0:
        end = start + len(word)
        if not lowered[start - 1 : start].isalnum() and not lowered[end : end + 1].isalnum():
            return text[start:end]
        start = lowered.find(word, start + 1)
    return word
