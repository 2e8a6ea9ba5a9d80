"""Scores of many texts of different lengths: like lengths together, so that little of a batch is padding.

Shapes: B texts of a batch, L words of its longest, N texts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

Ids = NDArray[np.int32]
"""token ids of a text, [words]; at least one"""
BATCH_TOKENS = 1 << 14
"""words of a batch, padding included: few enough for its states to stay in the cache"""
BATCH_TEXTS = 512


def batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Numbers of the texts of each batch, from long to short; those without words are left out."""
    order = sorted((number for number, length in enumerate(lengths) if length), key=lengths.__getitem__, reverse=True)
    start = 0
    while start < len(order):
        count = min(BATCH_TEXTS, max(1, BATCH_TOKENS // lengths[order[start]]))
        yield order[start : start + count]
        start += count


def pad(texts: Sequence[Ids]) -> tuple[Tensor, Tensor]:
    """Token ids int32 [B, L], padded on the right with 0, and lengths int64 [B]."""
    lengths = np.array([len(ids) for ids in texts])
    tokens = np.zeros((len(texts), lengths.max()), np.int32)
    tokens[np.arange(tokens.shape[1]) < lengths[:, None]] = np.concatenate(texts)
    return torch.from_numpy(tokens), torch.from_numpy(lengths)


@torch.inference_mode()
def score(model: nn.Module, texts: Sequence[Ids]) -> Tensor:
    """The model's scores [N, classes] or [N], in the order of the texts, of which there is at least one."""
    parts, order = [], []
    for numbers in batches([len(ids) for ids in texts]):
        parts.append(model(*pad([texts[number] for number in numbers])))
        order += numbers
    scores = torch.cat(parts)
    return scores[torch.from_numpy(np.argsort(order))]
