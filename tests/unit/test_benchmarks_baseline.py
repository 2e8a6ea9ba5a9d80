"""The simple alternative: its vectors are those of scikit-learn's own TF-IDF, and it reads what the dataset holds."""

from __future__ import annotations

import numpy as np
import pytest

import engine
from benchmarks import baseline
from engine.errors import UsageError
from tests.synthetic import write_dataset

pytest.importorskip("sklearn", reason="scikit-learn is an extra: pip install 'uneven-engine[baseline]'")


def test_vectors_are_those_of_the_library():
    from sklearn.feature_extraction.text import TfidfVectorizer

    rng = np.random.default_rng(1)
    texts = [rng.integers(1, 30, rng.integers(1, 25)) for _ in range(200)]
    words = [" ".join(f"w{number}" for number in text) for text in texts]
    library = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True, token_pattern=r"\S+")
    expected = library.fit_transform(words)
    made = baseline.TfIdf(texts)
    found = made(texts)
    assert found.shape == expected.shape
    # The same columns in another order: each one's name is its ids.
    names = [f"w{name}" if name < 1 << 32 else f"w{name >> 32} w{name & (1 << 32) - 1}" for name in made.names.tolist()]
    order = [library.vocabulary_[name] for name in names]
    np.testing.assert_allclose(found.toarray(), expected.toarray()[:, order], atol=1e-12)
    unseen = made([np.array([29, 500, 29])])
    assert unseen.shape == (1, found.shape[1])


def test_it_reads_all_rows_and_learns_from_them(tmp_path):
    content = write_dataset(tmp_path / "data")
    with engine.open(tmp_path / "data", "train") as data:
        texts, target = baseline.read_split(data)
    tokens, lengths, _ = content["train"][1]
    first = len(content["train"][0][0])
    assert len(texts) == len(target) == first + len(tokens)
    assert texts[first].tolist() == tokens[0][: lengths[0]].tolist()
    assert target.sum() == sum((part[2] >= 4).sum() for part in content["train"])
    found = baseline.baseline(str(tmp_path / "data"), {"all": str(tmp_path / "data")})
    assert found["figures"]["all"]["rows"] == 83
    assert found["figures"]["all"]["accuracy"] > found["figures"]["all"]["null_accuracy"]
    write_dataset(tmp_path / "none", rows={"train": (0, 0), "validation": (5, 5), "test": (5, 5)})
    with pytest.raises(UsageError, match="both classes"):
        baseline.baseline(str(tmp_path / "none"), {})
