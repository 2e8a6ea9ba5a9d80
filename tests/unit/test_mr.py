"""The whole preprocessing: every line accounted for, and one dataset whatever runs it."""

import ast
import gzip
import json
import os
import random
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from mr import sample
from mr.cli import main
from mr.job import Runner
from mr.options import parse_options
from mr.quarantine import write_quarantine
from mr.stopwords import ENGLISH
from native.format import DatasetError, read_manifest, read_vocabulary
from native.text import FIRST_WORD_ID, SPLITS, Encoder, TextSettings, normalize, split_of, text_digest, tokenize

h5py = pytest.importorskip("h5py")
ROOT = Path(__file__).parents[2]
DATA = ROOT.parent / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"the real reviews are not here: {DATA}")
FIELDS = ("kept", "duplicates", "empty", "malformed", "without_rating")


def run(out, *arguments, runner="inline"):
    """Run in this process; returns the manifest."""
    assert main([*map(str, arguments), "--out", str(out), "-r", runner]) == 0
    return read_manifest(out)


def write(path, reviews):
    path.write_bytes(
        b"".join(line if isinstance(line, bytes) else json.dumps(line).encode() + b"\n" for line in reviews)
    )
    return path


def review(text, stars=5.0, **more):
    return {"reviewText": text, "overall": stars, **more}


def many(count=60):
    return [review(f"number {number} of many", 1 + number % 5) for number in range(count)]


def rows(folder):
    """All rows as (split, words of ids, stars), read plainly."""
    manifest = read_manifest(folder)
    words = read_vocabulary(folder, manifest)
    found = []
    for part in manifest["parts"]:
        with h5py.File(folder / part["path"]) as file:
            for group in file.values():
                for ids, length, stars in zip(group["tokens"][:], group["lengths"][:], group["stars"][:], strict=True):
                    assert not ids[length:].any()
                    text = ["?" if id_ == 1 else words[id_ - FIRST_WORD_ID] for id_ in ids[:length]]
                    found.append((part["path"].split("/")[0], " ".join(text), int(stars)))
    return found


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def reviews(tmp_path_factory):
    """Three files of generated reviews, one of them an array, with lines in common."""
    folder = tmp_path_factory.mktemp("reviews")
    lines = list(sample.lines(900, 3))
    lines[360] = lines[360][:50] + b"\n"
    lines[10:20] = lines[700:710]
    lines[0:200] = lines[400:600]
    write(folder / "a.jsonl", lines[:400])
    (folder / "b.jsonl.gz").write_bytes(gzip.compress(b"".join(lines[350:700]), mtime=0))
    (folder / "c.json").write_bytes(b"[" + b",".join(line for line in lines[600:] if line.endswith(b"}\n")) + b"]")
    return sorted(folder.iterdir())


def test_one_dataset_from_every_runner_order_and_number_of_tasks(reviews, tmp_path, monkeypatch):
    expected = run(tmp_path / "inline", *reviews)
    assert expected["counts"]["malformed"] > 0
    assert expected["counts"]["duplicates"] > 200
    for name, runner, cores, order in (("one", "local", 1, reviews), ("two", "local", 2, reviews[::-1]),
                                       ("four", "local", 4, [reviews[1], reviews[2], reviews[0]])):  # fmt: skip
        run(tmp_path / name, *order, "--cores", cores, runner=runner)
        assert files(tmp_path / name) == files(tmp_path / "inline")
    for name, size in (("ingest.SHARD", 1000), ("pieces.PIECE", 3000), ("pieces._LEAST_GROUP", 2000)):
        monkeypatch.setattr(f"mr.{name}_BYTES", size)
    for module in ("pieces", "reading"):
        monkeypatch.setattr(f"mr.{module}.BLOCK_BYTES", 700)
    run(tmp_path / "pieces", *reviews, "--cores", 3, runner="local")
    assert files(tmp_path / "pieces") == files(tmp_path / "inline")
    elsewhere = tmp_path / "a [strange] folder"
    elsewhere.mkdir()
    copies = [elsewhere / path.name for path in reviews]
    for path, copy in zip(reviews, copies, strict=True):
        copy.write_bytes(path.read_bytes())
    monkeypatch.chdir(elsewhere)
    run(Path("data"), *copies)
    assert files(elsewhere / "data") == files(tmp_path / "inline")


def test_lines_may_come_in_any_order(reviews, tmp_path):
    lines = reviews[0].read_bytes().splitlines(keepends=True)
    before = run(tmp_path / "before", reviews[0])
    random.Random(1).shuffle(lines)
    after = run(tmp_path / "after", write(tmp_path / "a.jsonl", lines))
    assert after["digest"] == before["digest"]
    assert after["counts"] == before["counts"]


def test_every_category(tmp_path):
    first = write(tmp_path / "b.json", [
        *many(), review("Same text!", 4), b"\n", review("..."), review(None), {"overall": 3},
        review("no rating", None), review("", None), b"{'reviewText': 'python', 'overall': 5}\n", b'{"reviewText"\n',
        review(["list"]), b'{"reviewText": "bad \xff\xfe bytes", "overall": 5}\n',
        b'{"text": "new fields", "rating": "2"}',
    ])  # fmt: skip
    second = write(tmp_path / "a.json", [review("SAME, text", 1)])
    manifest = run(tmp_path / "out", first, second, "--max-malformed", "5")
    total = {"lines": 73, "kept": 64, "duplicates": 1, "empty": 4, "malformed": 2, "without_rating": 2}
    assert manifest["inputs"] == [
        {"file": "a.json", "lines": 1, "kept": 1, "duplicates": 0, "empty": 0, "malformed": 0, "without_rating": 0},
        {"file": "b.json", "lines": 72, "kept": 63, "duplicates": 1, "empty": 4, "malformed": 2, "without_rating": 2},
    ]
    assert manifest["counts"] == total
    quarantine = [json.loads(line) for line in (tmp_path / "out" / "quarantine.jsonl").read_text().splitlines()]
    assert [(entry["file"], entry["line"]) for entry in quarantine] == [("b.json", 69), ("b.json", 70)]
    assert "the text is a list" in quarantine[1]["reason"]
    assert quarantine[0]["start"] == '{"reviewText"'
    assert sum(manifest["splits"][split]["rows"] for split in SPLITS) == 64


def test_the_rating_given_most_often_wins_and_ties_go_down(tmp_path):
    votes = {"one": [5, 5, 1], "two": [4, 2], "three": [5, 3, 3, 5, 1], "four": [2, 1, 2, 5]}
    lines = [review(f"vote {name}", stars) for name, all_stars in votes.items() for stars in all_stars]
    random.Random(2).shuffle(lines)
    run(tmp_path / "out", write(tmp_path / "x.json", [*lines, *many()]), "--split", "train=100")
    found = {text: stars for _, text, stars in rows(tmp_path / "out")}
    assert [found[f"vote {name}"] for name in votes] == [5, 2, 3, 2]


def test_rows_are_the_texts(tmp_path):
    """Negations stay, splits follow from the digest, the vocabulary from the training split alone."""
    lines = [*many(200), review("This is not good, I don't like it.", 1), review("Caf\u00e9 \U0001f44d", 5)]
    manifest = run(tmp_path / "out", write(tmp_path / "x.json", lines), "--max-length", "6")
    shares = {"train": 80, "validation": 10, "test": 10}
    texts = [tokenize(line["reviewText"]) for line in lines]
    splits = [split_of(text_digest(words), shares) for words in texts]
    counts = Counter(word for words, split in zip(texts, splits, strict=True) if split == "train" for word in words)
    vocabulary = sorted(counts, key=lambda word: (-counts[word], word))
    assert read_vocabulary(tmp_path / "out", manifest) == vocabulary
    expected = [(split, " ".join(word if word in counts else "?" for word in words[:6]), int(line["overall"]))
                for words, split, line in zip(texts, splits, lines, strict=True)]  # fmt: skip
    assert sorted(rows(tmp_path / "out")) == sorted(expected)
    unknown = Counter(split for split, text, _ in rows(tmp_path / "out") for word in text.split() if word == "?")
    assert manifest["statistics"]["unknown_tokens"] == {split: unknown[split] for split in SPLITS}
    assert manifest["text"] == TextSettings(max_length=6).to_json()


def test_negations_stay(tmp_path):
    lines = [review("This is not good, I don't like it.", 1), review("No complaints", 5)]
    run(tmp_path / "out", write(tmp_path / "x.json", lines), "--split", "train=100")
    assert sorted(rows(tmp_path / "out")) == [
        ("train", "no complaints", 5),
        ("train", "this is not good i don't like it", 1),
    ]


def test_vocabulary_size_and_ties(tmp_path):
    lines = [review("b a c"), review("c a b b"), review("d \u00e9 z"), review("c")]
    manifest = run(tmp_path / "out", write(tmp_path / "x.json", lines), "--split", "train=100", "--vocab-size", "5")
    assert read_vocabulary(tmp_path / "out", manifest) == ["b", "c", "a", "d", "z"]


def test_stop_words_leave_and_can_leave_nothing(tmp_path):
    (tmp_path / "stop.txt").write_text("number\nOF\n")
    path = write(tmp_path / "x.json", [*many(), review("Of number"), review("not the")])
    manifest = run(tmp_path / "out", path, "--stop-words", tmp_path / "stop.txt", "--split", "train=100")
    assert manifest["counts"]["empty"] == 1
    assert manifest["text"]["stop_words"] == ["number", "of"]
    assert not {"number", "of"} & set(read_vocabulary(tmp_path / "out", manifest))
    assert {len(text.split()) for _, text, _ in rows(tmp_path / "out")} == {2}
    assert run(tmp_path / "english", path, "--stop-words", "english")["counts"]["empty"] == 1
    assert "not" in ENGLISH


def test_vocabulary_from_another_dataset(tmp_path):
    old = run(tmp_path / "old", write(tmp_path / "old.json", many()), "--max-length", "3", "--vocab-size", "4")
    new = write(tmp_path / "new.json", [review("many new words of number 5")])
    manifest = run(tmp_path / "new", new, "--vocabulary-from", tmp_path / "old", "--split", "test=100")
    assert manifest["vocabulary"] == old["vocabulary"]
    assert manifest["text"] == old["text"]
    words = Encoder(read_vocabulary(tmp_path / "old", old), TextSettings(max_length=3)).encode("many new words")
    assert words[1:] == [1, 1]
    assert rows(tmp_path / "new") == [("test", "many ? ?", 5)]


def recount(path, seen):
    """What becomes of a file's lines, by another way than the jobs'."""
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    lines = json.loads(data) if data.startswith(b"[") else data.removesuffix(b"\n").split(b"\n")
    counts = Counter(lines=len(lines))
    for line in lines:
        try:
            loose = isinstance(line, bytes) and line.startswith(b"{'")
            value = line if isinstance(line, dict) else ast.literal_eval(line.decode()) if loose else json.loads(line)
        except ValueError:
            counts["malformed"] += 1
            continue
        words = tuple(tokenize(value.get("reviewText") or value.get("text") or ""))
        rating = value.get("overall", value.get("rating"))
        read = "empty" if not words else "duplicates" if words in seen else "kept"
        kind = "without_rating" if rating is None else read
        counts[kind] += 1
        if kind == "kept":
            seen.add(words)
    return {field: counts[field] for field in ("lines", *FIELDS)}


@needs_data
def test_the_real_reviews_are_counted_like_an_independent_count(tmp_path):
    everything = "ALL_REVIEWS" in os.environ  # half a minute more
    chosen = [path for path in sorted(DATA.glob("*.json*")) if everything or path.stat().st_size < 2_000_000]
    manifest = run(tmp_path / "out", *chosen, "--cores", 2, runner="local")
    seen: set = set()
    expected = [{"file": path.name, **recount(path, seen)} for path in chosen]
    assert manifest["inputs"] == expected
    found = {file["file"]: file for file in manifest["inputs"]}
    assert found["AMAZON_FASHION_5.array-variant.json.gz"]["lines"] == 3176
    assert found["musical_instruments_metadata_top100.json"]["without_rating"] == 100


def call(*arguments, cwd):
    return subprocess.run([sys.executable, "-m", "mr", *map(str, arguments)], cwd=cwd, capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": str(ROOT)})  # fmt: skip


@pytest.mark.parametrize(("arguments", "told"), [
    ("missing.json --out out", "missing.json"),
    ("folder --out out", "folder"),
    ("good.txt --out out", ".jsonl.gz"),
    ("good.csv --out out", "no column reviewText or text"),
    ("cut.json.gz --out out", "cut.json.gz"),
    ("plain.json.gz --out out", "plain.json.gz"),
    ("binary.json --out out", "binary.json"),
    ("empty.json --out out", "empty.json"),
    ("nothing.json --out out --max-malformed 50", "no usable review"),
    ("good.json --out full", "not empty"),
    ("good.json --out good.json", "a file"),
    ("good.json --out good.json/out", "good.json/out"),
    ("good.json", "--out"),
    ("--out out", "INPUT"),
    ("good.json --out out --split train=80,test=10", "90"),
    ("good.json --out out --split train=80,extra=20", "extra"),
    ("good.json --out out --split test=100", "--vocabulary-from"),
    ("good.json --out out --vocab-size 0", "--vocab-size"),
    ("good.json --out out --max-length 10000", "--max-length"),
    ("good.json --out out --cores 0", "--cores"),
    ("good.json --out out --cores two", "--cores"),
    ("good.json --out out --stop-words missing.txt", "missing.txt"),
    ("good.json --out out --vocabulary-from full", "full"),
    ("good.json --out out --vocabulary-from full --max-length 5", "--max-length"),
    ("good.json --out out --max-malformed 101", "--max-malformed"),
    ("good.json --out out --max-malformed nan", "--max-malformed"),
    ("good.json --out out --columns review", "--columns"),
    ("good.json --out out --columns text=a,text=b", "--columns"),
    ("good.json --out out --columns text=", "--columns"),
    ("good.json --out out --columns rating=none", "--columns"),
    ("good.json --out out --spark-master yarn", "--spark-master"),
    ("good.json --out out --conf-path missing.conf", "--conf-path"),
    ("good.json --out out --conf-path broken.conf", "broken.conf"),
    ("gopher://host/good.json --out out", "gopher"),
    ("good.json --out out -r abacus", "abacus"),
    ("good.json --out out --nonsense", "--nonsense"),
    ("one.json --out out --split train=0.001,test=99.999", "--split"),
])  # fmt: skip
def test_wrong_usage_is_one_line_and_leaves_nothing(tmp_path, monkeypatch, capfd, arguments, told):
    write(tmp_path / "good.json", many())
    write(tmp_path / "good.csv", many())
    write(tmp_path / "good.txt", many())
    write(tmp_path / "one.json", [review("just one")])
    write(tmp_path / "nothing.json", [review("..."), b"x\n"])
    (tmp_path / "empty.json").touch()
    (tmp_path / "cut.json.gz").write_bytes(gzip.compress(b'{"a": 1}\n' * 1000)[:-10])
    write(tmp_path / "plain.json.gz", many())
    (tmp_path / "binary.json").write_bytes(bytes(range(256)) * 20)
    (tmp_path / "broken.conf").write_text("runners: [")
    (tmp_path / "folder").mkdir()
    (tmp_path / "full").mkdir()
    write(tmp_path / "full" / "mine.txt", [b"mine"])
    before = files(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TMPDIR", raising=False)
    assert main([*arguments.split(), *([] if "-r" in arguments else ["-r", "inline"])]) == 2
    written = capfd.readouterr().err.splitlines()
    errors = [line for line in written if not line.startswith("[")]
    assert len(errors) == 1
    assert errors[0].startswith("mr: ")
    assert told in errors[0]
    assert files(tmp_path) == before
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["folder", "full"]


def test_a_failing_task_is_one_line_with_its_cause(tmp_path, monkeypatch, capfd):
    path = write(tmp_path / "good.json", many())
    monkeypatch.setattr("mr.clean.normalize", lambda text: 1 / 0)
    for runner in ("inline", "local"):
        assert main([str(path), "--out", str(tmp_path / "out"), "-r", runner, "--cores", "2"]) == 1
        errors = [line for line in capfd.readouterr().err.splitlines() if not line.startswith("[")]
        assert len(errors) == 1
        assert "division by zero" in errors[0]
        assert f"what was done is kept in {tmp_path / 'out.work'}" in errors[0]
        assert sorted(entry.name for entry in tmp_path.iterdir()) == ["good.json", "out.work"]


def test_the_runners_processes_end_when_told_to(tmp_path, monkeypatch, capfd):
    """They must not inherit the command's handler: the pool would wait for ever for one that swallowed it."""
    path = write(tmp_path / "good.json", many())

    def words(text: str) -> str:
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL, "a task would survive SIGTERM"
        return normalize(text)

    def look(*arguments):
        handlers.append(signal.getsignal(signal.SIGTERM))
        return write_quarantine(*arguments)

    handlers = []
    monkeypatch.setattr("mr.clean.normalize", words)
    monkeypatch.setattr("mr.driver.write_quarantine", look)
    before = signal.getsignal(signal.SIGTERM)
    assert main([str(path), "--out", str(tmp_path / "out"), "-r", "local", "--cores", "2"]) == 0, capfd.readouterr().err
    assert handlers[0] not in (signal.SIG_DFL, before), "the command itself listens"
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_failure_while_writing_leaves_no_dataset(tmp_path, monkeypatch):
    path = write(tmp_path / "good.json", many())
    monkeypatch.setattr("mr.driver.write_quarantine", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
    (tmp_path / "out").mkdir()
    assert main([str(path), "--out", str(tmp_path / "out"), "-r", "inline"]) == 1
    with pytest.raises(DatasetError, match=r"dataset\.json"):
        read_manifest(tmp_path / "out")


def test_the_command_from_anywhere_and_killed(tmp_path):
    write(tmp_path / "good.json", many())
    done = call("good.json", "--out", "out", "--cores", 2, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert read_manifest(tmp_path / "out")["counts"]["kept"] == 60
    assert "60" in done.stdout
    assert "\r" not in done.stderr
    (tmp_path / "big.json").write_bytes(b"".join(sample.lines(3000, 1)) * 20)
    command = [sys.executable, "-m", "mr", "big.json", "--out", "killed"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    running = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, env=environment)
    while "cleaning" not in (line := running.stderr.readline()):
        assert line, "it ended before it began to clean"
    running.terminate()
    assert running.wait(30) != 0
    assert "Traceback" not in running.stderr.read()
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["big.json", "good.json", "killed.work", "out"]


def test_defaults_are_those_of_the_contract(tmp_path):
    options = parse_options([str(write(tmp_path / "x.json", many())), "--out", str(tmp_path / "out")])
    assert options.runner == Runner(name="local", cores=len(os.sched_getaffinity(0)))
    assert options.settings.vocab_size == 10_000
    assert options.settings.text == TextSettings(max_length=256, stop_words=())
    assert options.settings.split == {"train": 80, "validation": 10, "test": 10}
