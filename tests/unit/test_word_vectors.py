"""First word vectors: like company, like vectors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import engine
from engine import word_vectors as module
from engine.word_vectors import word_vectors
from native import DatasetWriter
from tests.synthetic import write_dataset


def write(folder: Path, rows: list[list[int]], words: int, bound: int = 12) -> None:
    tokens = np.zeros((len(rows), bound), np.int64)
    for place, row in enumerate(rows):
        tokens[place, : len(row)] = row
    counts = {"train": (len(rows),), "validation": (0,), "test": (0,)}
    writer = DatasetWriter(folder, bounds=(bound,), rows=counts, vocabulary=[f"w{i}" for i in range(words)])
    writer.write("train", 0, tokens, np.array([len(row) for row in rows]), np.full(len(rows), 5))
    total = len(rows)
    writer.finish(
        text={"max_length": bound, "stop_words": []},
        counts={"lines": total, "kept": total, "duplicates": 0, "empty": 0, "malformed": 0, "without_rating": 0},
    )


def counts_by_hand(rows: list[list[int]], ids: int) -> np.ndarray:
    counts = np.zeros((ids, ids - 2))
    for row in rows:
        for place, word in enumerate(row):
            for other, company in enumerate(row):
                distance = abs(place - other)
                if 1 <= distance <= 5 and word >= 2 and company >= 2:
                    counts[word, company - 2] += 1 / distance
    return counts


def random_rows(count: int, words: int) -> list[list[int]]:
    rng = np.random.default_rng(1)
    return [rng.integers(1, words + 2, rng.integers(1, 13)).tolist() for _ in range(count)]


def test_counts_and_information_are_those_of_the_definition(tmp_path):
    rows = random_rows(300, 20)
    write(tmp_path / "data", rows, 20)
    expected = counts_by_hand(rows, 22)
    with engine.open(tmp_path / "data") as data:
        np.testing.assert_allclose(module._count(data), expected, rtol=1e-5)
        found = word_vectors(data, 20)
    share = expected.sum(axis=0) ** 0.75
    share /= share.sum()
    with np.errstate(divide="ignore", invalid="ignore"):
        information = np.maximum(np.nan_to_num(np.log(expected / np.outer(expected.sum(axis=1), share)), neginf=0.0), 0)
    # With as many numbers as contexts, E = U sqrt(S): E^T E is diagonal, and E E^T = (information information^T)^(1/2).
    left, singular, _ = np.linalg.svd(information, full_matrices=False)
    product = left * singular @ left.T
    scale = (found @ found.T)[2:, 2:].sum() / product[2:, 2:].sum()
    np.testing.assert_allclose(found @ found.T, product * scale, atol=2e-3 * np.abs(product * scale).max())
    assert found[:2].tolist() == [[0.0] * 20] * 2
    assert found[2:].std() == pytest.approx(1.0, rel=1e-4)


def test_words_in_like_company_begin_with_like_vectors(tmp_path):
    rng = np.random.default_rng(2)
    # Words 2 and 3 stand among 10..19, words 4 and 5 among 20..29.
    rows = []
    for _ in range(600):
        pair, near = ((2, 3), 10) if rng.random() < 0.5 else ((4, 5), 20)
        row = rng.integers(near, near + 10, 11).tolist()
        row[5] = pair[rng.integers(2)]
        rows.append(row)
    write(tmp_path / "data", rows, 30)
    with engine.open(tmp_path / "data") as data:
        vectors = word_vectors(data, 8)
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
    assert unit[2] @ unit[3] > 0.9
    assert unit[4] @ unit[5] > 0.9
    assert unit[2] @ unit[4] < 0.3


def test_equal_data_give_equal_bytes_and_a_large_split_is_sampled(tmp_path, monkeypatch):
    write_dataset(tmp_path / "data")
    with engine.open(tmp_path / "data") as data:
        assert word_vectors(data, 6).tobytes() == word_vectors(data, 6).tobytes()
        monkeypatch.setattr(module, "_BLOCK", 64)
        blocks = len(list(module._blocks(data)))
        monkeypatch.setattr(module, "MOST_TOKENS", 3000)
        assert 1 <= len(list(module._blocks(data))) < blocks


def test_few_words_and_many_numbers(tmp_path):
    write(tmp_path / "data", [[2], [2, 3, 2]], 2)
    with engine.open(tmp_path / "data") as data:
        found = word_vectors(data, 100)
    assert found.shape == (4, 100)
    assert np.isfinite(found).all()
    assert not found[:, 2:].any()


def test_rare_words_have_none(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MOST_WORDS", 10)
    write(tmp_path / "data", random_rows(50, 20), 20)
    with engine.open(tmp_path / "data") as data:
        assert word_vectors(data, 4).shape == (10, 4)
