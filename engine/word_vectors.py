"""First word vectors from which words stand near which in the training split, before any training.

Positive pointwise mutual information of words and the frequent words around them, reduced by a truncated singular value
decomposition with the root of the singular values (Levy and Goldberg, "Neural Word Embedding as Implicit Matrix
Factorization", NIPS 2014; nearer words count more, as in GloVe: Pennington et al., EMNLP 2014). Words that stand in the
same company, "terrible" and "awful", begin with like vectors, which some ten thousand reviews alone do not teach.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from native.dataset import Dataset

WINDOW = 5
"""words to each side that are a word's company; each counts 1 / distance"""
CONTEXTS = 2000
"""only so many most frequent words count as company"""
MOST_WORDS = 1 << 16
"""only so many most frequent words get vectors: the counts take MOST_WORDS x CONTEXTS x 4 bytes at most, half a GB"""
MOST_TOKENS = 20_000_000
"""of a larger split every second, third, .. block of rows is read"""
_BLOCK = 4096
_SMOOTHING = 0.75
"""power of the contexts' frequencies: without it rare ones tell too much (Levy, Goldberg and Dagan, TACL 2015)"""
_FIRST_WORD = 2
"""ids 0 and 1 are padding and unknown words"""
_FREQUENT = 5000


def word_vectors(data: Dataset, size: int) -> np.ndarray:
    """A vector per token id, for the most frequent words; those words are the lowest ids.

    Args:
        data: the opened training split.
        size: numbers per vector.

    Returns:
        float32 [at most ids, size]; zeros for padding, for unknown words, and for words that nothing is known of. About
        as large as numbers of deviation 1, which an embedding begins with otherwise.

    Raises:
        DatasetError: damaged data.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the bits of a product hang on the number of threads, and the trajectory on the bits
    try:
        return _reduced(_count(data), size)
    finally:
        torch.set_num_threads(threads)


def _reduced(counts_VC: np.ndarray, size: int) -> np.ndarray:
    """Vectors of so many numbers from counts, which are overwritten."""
    total_V, total_C = counts_VC.sum(axis=1, dtype=np.float64), counts_VC.sum(axis=0, dtype=np.float64) ** _SMOOTHING
    total_C /= max(total_C.sum(), 1e-30)
    gram_CC = np.zeros((counts_VC.shape[1],) * 2)
    for first in range(0, len(counts_VC), _BLOCK):
        rows = slice(first, first + _BLOCK)
        _inform(counts_VC[rows], total_V[rows], total_C)
        block_BC = torch.tensor(counts_VC[rows])
        gram_CC += (block_BC.T @ block_BC).numpy()
    squares_C, directions_CC = (
        part.numpy() for part in torch.linalg.eigh(torch.tensor(gram_CC))
    )  # of the singular values, from the least upwards
    kept = min(size, len(squares_C))
    squares_K, directions_CK = squares_C[::-1][:kept], directions_CC[:, ::-1][:, :kept]
    # A direction's sign is any; the largest number of each is made positive, so that equal data give equal vectors.
    signs_K = np.sign(directions_CK[np.abs(directions_CK).argmax(axis=0), np.arange(kept)])
    weights_CK = directions_CK * (signs_K / np.maximum(squares_K, 1e-12) ** 0.25)
    found = np.zeros((len(counts_VC), size), np.float32)
    found[:, :kept] = (torch.tensor(counts_VC) @ torch.tensor(weights_CK, dtype=torch.float32)).numpy()
    deviation = float(found[_FIRST_WORD:_FREQUENT].std())
    return found / deviation if deviation else found


def _inform(counts_VC: np.ndarray, total_V: np.ndarray, share_C: np.ndarray) -> None:
    """Turn counts into positive pointwise mutual information, in place."""
    met = counts_VC > 0
    expected_VC = np.outer(total_V, share_C).astype(np.float32)
    np.divide(counts_VC, expected_VC, out=counts_VC, where=met)
    np.log(counts_VC, out=counts_VC, where=met)
    np.maximum(counts_VC, 0.0, out=counts_VC)


def _count(data: Dataset) -> np.ndarray:
    """How often each word stood near each frequent word, float32 [ids, contexts]."""
    words = min(data.ids, MOST_WORDS)
    contexts = max(1, min(words - _FIRST_WORD, CONTEXTS))
    counts_VC = np.zeros((words, contexts), np.float32)
    flat = counts_VC.reshape(-1)
    for tokens_BL in _blocks(data):
        tokens_BL[tokens_BL >= words] = 1
        for distance in range(1, min(WINDOW, tokens_BL.shape[1] - 1) + 1):
            left, right = tokens_BL[:, :-distance], tokens_BL[:, distance:]
            for word, company in ((left, right), (right, left)):
                place = company - _FIRST_WORD
                near = (word >= _FIRST_WORD) & (place >= 0) & (place < contexts)
                np.add.at(flat, word[near] * contexts + place[near], np.float32(1 / distance))
    return counts_VC


def _blocks(data: Dataset) -> Iterator[np.ndarray]:
    """Token ids of rows as they stand, int64 [rows, length]; an even sample of a large split."""
    tokens = sum(shape.rows * shape.bound for shape in data.layout)
    every = -(-tokens // MOST_TOKENS) or 1
    for bucket, shape in enumerate(data.layout):
        for first in range(0, shape.rows, _BLOCK * every):
            yield data.read_bucket(bucket, np.arange(first, min(shape.rows, first + _BLOCK))).tokens.astype(np.int64)
