"""How good the trained model is beside the simple alternative: TF-IDF of words and word pairs with logistic regression.

    python -m benchmarks.baseline --data DATA --checkpoint RUN/checkpoints/best [--also AMAZON=DATA2 ...]

Both see the same rows of the same splits: the linear model is fitted on the training split, its regularisation chosen
on the validation split, and the test split is looked at once, by both. It sees the words as the dataset holds them:
a word beyond the vocabulary is "unknown" to it too, but the order of all words in a review counts for pairs.
With --checkpoint given several times (runs that differ in their seed alone) the figures are means, with the standard
deviation. Datasets of --also must have the same vocabulary (python -m mr --vocabulary-from DATA); only their test split
is used. A text stands in the same split of every dataset, so that none of them was trained on.
Needs scikit-learn: pip install 'uneven-engine[baseline]'.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np

from benchmarks import report
from benchmarks.report import Target
from engine.errors import UsageError
from engine.evaluate import evaluate
from engine.metrics import classification_figures, confusion_matrix
from native.dataset import Dataset, open_dataset
from native.format import DatasetError

STRENGTHS = (1.0, 3.0, 10.0, 30.0)
"""inverse regularisation of the logistic regression that are tried"""
LEAST_REVIEWS = 2
"""reviews that a word or pair must stand in"""
BLOCK = 65536


class Skipped(Exception):
    """What it needs is not there."""


def read_split(data: Dataset) -> tuple[list[np.ndarray], np.ndarray]:
    """Token ids of each review, and its class: 1 for 4 or 5 stars."""
    texts: list[np.ndarray] = []
    stars: list[np.ndarray] = []
    for bucket, shape in enumerate(data.layout):
        for first in range(0, shape.rows, BLOCK):
            batch = data.read_bucket(bucket, np.arange(first, min(shape.rows, first + BLOCK)))
            texts += [row[:length].copy() for row, length in zip(batch.tokens, batch.lengths, strict=True)]
            stars.append(batch.stars.copy())
    return texts, (np.concatenate(stars) >= 4).astype(np.int64) if stars else np.zeros(0, np.int64)


class TfIdf:
    """Words and pairs of neighbours as TF-IDF vectors of length 1: 1 + log(count), times log((1 + n) / (1 + df)) + 1.

    Args:
        texts: token ids per review, of the training split; what stands in fewer than LEAST_REVIEWS is left out.
    """

    def __init__(self, texts: Sequence[np.ndarray]) -> None:
        from sklearn.feature_extraction.text import TfidfTransformer

        names, reviews = _features(texts)
        # A feature counts once per review, however often it stands there.
        once = np.unique(np.stack((reviews, names)), axis=1)[1] if len(names) else names
        found, counts = np.unique(once, return_counts=True)
        self.names = found[counts >= LEAST_REVIEWS]
        self._weights = TfidfTransformer(sublinear_tf=True).fit(self._counts(texts))

    def __call__(self, texts: Sequence[np.ndarray]) -> Any:
        """A sparse matrix [reviews, features]."""
        return self._weights.transform(self._counts(texts))

    def _counts(self, texts: Sequence[np.ndarray]) -> Any:
        from scipy.sparse import csr_array

        names, reviews = _features(texts)
        places = np.searchsorted(self.names, names)
        known = places < len(self.names)
        known[known] = self.names[places[known]] == names[known]
        # scikit-learn takes 32-bit indices alone.
        where = reviews[known].astype(np.int32), places[known].astype(np.int32)
        return csr_array((np.ones(len(where[0])), where), shape=(len(texts), len(self.names)))


def _features(texts: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """All words and pairs as numbers (a word: its id; a pair: first id * 2^32 + second id), and whose they are."""
    lengths = np.array([len(text) for text in texts], np.int64)
    ids = np.concatenate(texts).astype(np.int64) if len(texts) else np.zeros(0, np.int64)
    owners = np.repeat(np.arange(len(texts)), lengths)
    neighbours = owners[:-1] == owners[1:]
    pairs = (ids[:-1] << 32 | ids[1:])[neighbours]
    return np.concatenate((ids, pairs)), np.concatenate((owners, owners[:-1][neighbours]))


def fit(train: tuple[Any, np.ndarray], validation: tuple[Any, np.ndarray]) -> tuple[Any, float]:
    """A logistic regression, of the strength that is best on the validation split; and that strength."""
    from sklearn.linear_model import LogisticRegression

    tried = []
    for strength in STRENGTHS:
        model = LogisticRegression(C=strength, solver="liblinear", random_state=0).fit(*train)
        tried.append((figures(model, *validation)["macro_f1"], strength, model))
    best = max(tried, key=lambda item: item[0])
    return best[2], best[1]


def figures(model: Any, vectors: Any, target: np.ndarray) -> dict[str, Any]:
    """Accuracy, macro-F1 and so on."""
    return classification_figures(confusion_matrix(target, model.predict(vectors), 2))


def baseline(data: str, others: dict[str, str]) -> dict[str, Any]:
    """Figures of the linear model on the test split of a dataset and of others.

    Raises:
        Skipped: scikit-learn is missing.
        DatasetError: missing or damaged files.
    """
    try:
        import sklearn  # noqa: F401
    except ImportError:
        raise Skipped("scikit-learn is missing: pip install 'uneven-engine[baseline]'") from None
    start = time.perf_counter()
    splits = {}
    for name in ("train", "validation"):
        with open_dataset(data, name) as opened:
            splits[name] = read_split(opened)
    if not len(splits["train"][1]) or len(set(splits["train"][1].tolist())) < 2:
        raise UsageError(f"{data}: the training split needs reviews of both classes")
    vectors = TfIdf(splits["train"][0])
    train, validation = ((vectors(texts), target) for texts, target in splits.values())
    model, strength = fit(train, validation)
    found = {}
    for name, folder in others.items():
        with open_dataset(folder, "test") as opened:
            texts, target = read_split(opened)
        if not len(target):
            raise UsageError(f"{folder}: its test split has no rows")
        found[name] = figures(model, vectors(texts), target)
    return {
        "figures": found,
        "strength": strength,
        "features": len(vectors.names),
        "seconds": time.perf_counter() - start,
    }


def ours(checkpoints: Sequence[str], datasets: dict[str, str]) -> dict[str, Any]:
    """Means and deviations over checkpoints, by dataset."""
    found = {}
    for name, folder in datasets.items():
        each = [evaluate(folder, checkpoint, "test", device="cpu") for checkpoint in checkpoints]
        found[name] = {
            key: fmean(one[key] for one in each) for key in ("accuracy", "macro_f1", "null_accuracy", "null_macro_f1")
        } | {
            "macro_f1_deviation": stdev(one["macro_f1"] for one in each) if len(each) > 1 else None,
            "each": [{key: one[key] for key in ("accuracy", "macro_f1", "confusion")} for one in each],
            "rows": each[0]["rows"],
        }
    return found


def main() -> int:
    """Run the benchmark; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.baseline", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True, metavar="DATA", help="dataset that the checkpoints were trained on")
    parser.add_argument("--checkpoint", required=True, action="append", metavar="PATH", help="again for each seed")
    parser.add_argument("--also", action="append", default=[], metavar="NAME=DATA2", help="further test splits")
    parser.add_argument("--result", metavar="PATH", type=Path, help="write the last line's object to this file too")
    options = parser.parse_args()
    datasets = {"all": options.data}
    try:
        for text in options.also:
            name, _, folder = text.partition("=")
            if not name or not folder or name in datasets:
                raise UsageError(f"--also {text!r}: write NAME=DATA2, each name once")
            datasets[name] = folder
        model = ours(options.checkpoint, datasets)
        linear: dict[str, Any] | None = baseline(options.data, datasets)
    except Skipped as problem:
        linear = None
        print(f"benchmarks.baseline: {problem}", file=sys.stderr)
    except (UsageError, DatasetError) as error:
        print(f"benchmarks.baseline: {error}", file=sys.stderr)
        return 2
    rows, judged = [], []
    for name, found in model.items():
        others = linear["figures"][name] if linear else None
        deviation = "" if found["macro_f1_deviation"] is None else f"{found['macro_f1_deviation']:.4f}"
        rows.append((name, "most frequent class", *_shown(found, "null_"), "", ""))
        if others:
            rows.append((name, "TF-IDF, logistic regression", *_shown(others), "", ""))
        rows.append((name, f"this model ({len(options.checkpoint)})", *_shown(found), deviation, ""))
        judged.append(
            Target(
                f"macro-F1 over the linear model's, {name}",
                found["macro_f1"] - others["macro_f1"] if others else None,
                at_least=0.0,
            )
        )
    print(report.table(("test split", "", "accuracy", "macro-F1", "+-", ""), rows))
    print("\ntargets:", *(target.as_line() for target in judged), sep="\n")
    packages = ("torch", "scikit-learn") if linear else ("torch",)
    result = {"ours": model, "linear": linear, **report.verdicts(judged), "machine": report.machine(packages)}
    report.finish(result, options.result)
    return 0


def _shown(found: dict[str, Any], prefix: str = "") -> tuple[str, str]:
    return f"{found[prefix + 'accuracy']:.4f}", f"{found[prefix + 'macro_f1']:.4f}"


if __name__ == "__main__":
    sys.exit(main())
