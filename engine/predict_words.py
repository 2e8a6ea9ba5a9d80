"""Which words of a text spoke most for its label.

A word's say is what is lost without it: all its places are left out, and the model judges the rest (Li, Monroe and
Jurafsky, arXiv:1612.08220, 2016). Doing so for every word takes a pass per word. The words to try are therefore chosen
by gradient times input, summed over a word's places (Simonyan et al., arXiv:1312.6034, 2013; Ancona et al., ICLR 2018),
a single pass forward and back. docs/predict.md has what each way is worth and costs.

Shapes: B texts, L words of the longest, E embedding size, N texts with a word left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.losses import ReviewLoss
from engine.predict_batches import Ids, pad, score
from engine.saved_model import SavedModel
from native.text import UNKNOWN_ID

CANDIDATES = 10
"""words of a text that are left out in turn; twice as many as are wanted, where that is more"""


@dataclass(frozen=True, slots=True)
class SpokenWord:
    """A word that spoke for the label."""

    word: str
    without: float | None
    """probability of the label when the word is left out; None where the model has no probabilities"""


def speaking_words(
    saved: SavedModel,
    texts: Sequence[Ids],
    words: Sequence[Sequence[str]],
    scores: Tensor,
    labels_B: Tensor,
    count: int,
) -> list[list[SpokenWord]]:
    """The words of each text without which its label loses most, the strongest first; only those that do speak for it.

    A text of one word alone is compared with a text of an unknown word.

    Args:
        saved: the model.
        texts: B of them.
        words: their words, one for each id.
        scores: what the model gives for them, [B, classes] or [B].
        labels_B: its labels.
        count: at most so many words for a text.
    """
    tried: list[tuple[int, str]] = []
    rest: list[Ids] = []
    for number, gains in enumerate(_gains(saved, texts, labels_B)):
        places: dict[str, list[int]] = {}
        for place, word in enumerate(words[number]):
            places.setdefault(word, []).append(place)
        totals = {word: gains[at].sum() for word, at in places.items()}
        for word in sorted(totals, key=totals.__getitem__, reverse=True)[: max(CANDIDATES, 2 * count)]:
            left = np.delete(texts[number], places[word])
            tried.append((number, word))
            rest.append(left if len(left) else np.array([UNKNOWN_ID], np.int32))
    scores_without = score(saved.model, rest)
    owner_N = torch.tensor([number for number, _ in tried])
    labels_N = labels_B[owner_N]
    falls_N = _lead(saved.loss, scores, labels_B)[owner_N] - _lead(saved.loss, scores_without, labels_N)
    found: list[list[tuple[float, SpokenWord]]] = [[] for _ in texts]
    without_N = probabilities_of(saved.loss, scores_without, labels_N)
    for (number, word), fall, without in zip(tried, falls_N.tolist(), without_N, strict=True):
        if fall > 0:
            found[number].append((fall, SpokenWord(word, without)))
    return [[word for _, word in sorted(some, key=lambda one: -one[0])[:count]] for some in found]


def probabilities_of(loss: ReviewLoss, scores: Tensor, labels_N: Tensor) -> list[float | None]:
    """Probability of each text's label; None where the loss has none."""
    probabilities_NC = loss.probabilities(scores)
    if probabilities_NC is None:
        return [None] * len(labels_N)
    chosen: list[float | None] = probabilities_NC.gather(1, labels_N.unsqueeze(1)).squeeze(1).tolist()
    return chosen


def _gains(saved: SavedModel, texts: Sequence[Ids], labels_B: Tensor) -> list[NDArray[np.float64]]:
    """What each place of each text adds to the lead of its label, to first order: gradient times input."""
    seen: list[Tensor] = []

    def watch(_module: object, _given: object, vectors: Tensor) -> Tensor:
        seen.append(vectors.detach().requires_grad_())
        return seen[0]

    handle = saved.model.embedding.register_forward_hook(watch)
    try:
        with torch.enable_grad():
            lead_B = _lead(saved.loss, saved.model(*pad(texts)), labels_B)
            (gradient_LBE,) = torch.autograd.grad(lead_B.sum(), seen)
    finally:
        handle.remove()
    gains_LB = (gradient_LBE * seen[0].detach()).sum(dim=2).double().numpy()
    return [gains_LB[: len(ids), number] for number, ids in enumerate(texts)]


def _lead(loss: ReviewLoss, scores: Tensor, labels_N: Tensor) -> Tensor:
    """How far a text's label is ahead of the others, [N].

    That is its log-odds. Of mean squared error it is how far the number lies on the label's side of the middle of the
    scale; for the label in the middle nothing leads.
    """
    if loss.kind == "cross_entropy":
        own_N = scores.gather(1, labels_N.unsqueeze(1)).squeeze(1)
        return own_N - scores.scatter(1, labels_N.unsqueeze(1), float("-inf")).logsumexp(dim=1)
    middle = (loss.classes - 1) / 2
    towards_N = torch.sign(labels_N - middle)
    return scores * towards_N if loss.kind == "bce" else (scores - middle) * towards_N
