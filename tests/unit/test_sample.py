"""The generator of reviews: equal bytes for equal arguments, and the dirt that is promised."""

import gzip
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from mr import sample

ROOT = Path(__file__).parents[2]


def test_equal_arguments_give_equal_bytes(tmp_path):
    for name, rows, seed in (("a", 300, 1), ("b", 300, 1), ("c", 300, 2), ("d", 200, 1)):
        sample.write(tmp_path / f"{name}.jsonl.gz", rows, seed)
    a, b, c, d = ((tmp_path / f"{name}.jsonl.gz").read_bytes() for name in "abcd")
    assert a == b != c
    assert gzip.decompress(a).startswith(gzip.decompress(d))
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{name}.jsonl.gz" for name in "abcd"]


def test_a_file_of_somebody_elses_is_left_alone(tmp_path, capsys):
    path = tmp_path / "reviews.jsonl.gz"
    path.write_bytes(b"precious")
    assert sample.main(["--out", str(path), "--rows", "30"]) == 2
    [told] = capsys.readouterr().err.splitlines()
    assert "there is such a file already" in told
    assert path.read_bytes() == b"precious"
    path.unlink()
    for _ in range(2):  # the same again is no harm
        assert sample.main(["--out", str(path), "--rows", "30"]) == 0
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_content():
    reviews, broken = [], 0
    for line in sample.lines(4000, 7):
        try:
            reviews.append(json.loads(line))
        except ValueError:
            broken += 1
    assert 1 <= broken <= 40
    fields = {"reviewerID", "asin", "reviewerName", "helpful", "reviewText", "overall", "summary", "unixReviewTime",
              "reviewTime"}  # fmt: skip
    assert all(set(review) <= fields for review in reviews)
    texts = [review.get("reviewText", "") for review in reviews]
    stars = Counter(review.get("overall") for review in reviews)
    assert 1 <= stars[None] <= 60
    assert 1 <= texts.count("") <= 60
    assert (stars[4] + stars[5]) / sum(stars.values()) == pytest.approx(0.75, abs=0.04)
    assert set(stars) == {1, 2, 3, 4, 5, None}
    lengths = [len(text.split()) for text in texts if text]
    assert min(lengths) <= 4
    assert max(lengths) >= 90
    everything = "\n".join(texts)
    for dirt in ("&quot;", "&amp;", "&#39;", "<br />", " not ", "isn't"):
        assert dirt in everything
    assert len(set(texts)) < len(texts) - 100


def test_negation_is_needed():
    """The same words stand in good and bad reviews."""
    good, bad = Counter(), Counter()
    for line in sample.lines(4000, 7):
        if b'"overall": 5.0' in line:
            good.update(word for word in sample.BAD if f" {word}".encode() in line)
        elif b'"overall": 1.0' in line:
            bad.update(word for word in sample.BAD if f" {word}".encode() in line)
    assert sum(good.values()) > sum(bad.values()) / 2


@pytest.mark.parametrize(("arguments", "told"), [
    ([], "--out"),
    (["--out", "x.json"], ".jsonl.gz"),
    (["--out", "missing/x.jsonl.gz"], "missing"),
    (["--out", "x.jsonl.gz", "--rows", "0"], "--rows"),
    (["--out", "x.jsonl.gz", "--rows", "many"], "--rows"),
])  # fmt: skip
def test_wrong_usage_is_one_line(arguments, told, tmp_path):
    done = subprocess.run([sys.executable, "-m", "mr.sample", *arguments], cwd=tmp_path, capture_output=True, text=True,
                          env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"})  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert told in done.stderr
    assert not list(tmp_path.iterdir())
