"""python -m mr again: what stands is not done again, what was cut off goes on, and nothing unfinished looks whole."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from mr import driver, sample
from mr.cli import main
from native.format import MANIFEST, UNFINISHED, DatasetError, read_manifest

ROOT = Path(__file__).parents[2]
TITLES = ("reading the input", "cleaning, dropping duplicates", "counting words", "encoding")


@pytest.fixture(scope="module")
def reviews(tmp_path_factory):
    path = tmp_path_factory.mktemp("reviews") / "reviews.jsonl"
    path.write_bytes(b"".join(sample.lines(3000, 4)))
    return path


@pytest.fixture(scope="module")
def expected(reviews, tmp_path_factory):
    out = tmp_path_factory.mktemp("expected") / "out"
    assert main([str(reviews), "--out", str(out), "-r", "inline"]) == 0
    return out


def run(capfd, *arguments, status=0):
    """The stages that were done before, of TITLES."""
    capfd.readouterr()
    assert main([*map(str, arguments)]) == status
    told = capfd.readouterr().err
    return [title for title in TITLES if f"{title}: done before" in told], told


def start(*arguments, cwd) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "mr", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        command, cwd=cwd, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, start_new_session=True,
        env=environment,
    )  # fmt: skip


def same(out: Path, other: Path) -> bool:
    names = sorted(path.relative_to(other) for path in other.rglob("*") if path.is_file())
    return names == sorted(path.relative_to(out) for path in out.rglob("*") if path.is_file()) and all(
        (out / name).read_bytes() == (other / name).read_bytes() for name in names
    )


@pytest.mark.parametrize(("runner", "seed"), [("local", 1), ("local", 2), ("inline", 3)])
def test_a_killed_run_goes_on_to_the_same_dataset(reviews, expected, tmp_path, runner, seed):
    rng, out = random.Random(seed), tmp_path / "out"
    arguments = [reviews, "--out", out, "-r", runner, "--cores", 2]
    moments = [*TITLES, "writing the dataset"]
    for title in moments:
        running = start(*arguments, cwd=tmp_path)
        # Killed soon after the stage began, or after it ended.
        while (line := running.stderr.readline()) and title not in line:
            pass
        assert line, "it ended before its time"
        time.sleep(rng.random() * 0.05)
        os.killpg(running.pid, signal.SIGKILL)
        told = line + running.stderr.read()
        running.wait()
        if (out / MANIFEST).exists():
            assert title == moments[-1]
        else:
            with pytest.raises(DatasetError):
                read_manifest(out)
    running = start(*arguments, cwd=tmp_path)
    told = running.communicate(timeout=120)[1]
    assert running.returncode == 0, told
    assert same(out, expected)
    assert "cleaning, dropping duplicates: done before" in told or "nothing to do" in told
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["out"]


def test_a_driver_that_is_killed_alone_takes_its_processes_along(reviews, tmp_path):
    running = start(reviews, "--out", "out", "--cores", 2, cwd=tmp_path)
    while "cleaning" not in (line := running.stderr.readline()):
        assert line
    driver = psutil.Process(running.pid)
    deadline = time.monotonic() + 30
    while not (children := driver.children(recursive=True)):
        assert time.monotonic() < deadline
    os.kill(running.pid, signal.SIGKILL)
    running.wait()
    _, alive = psutil.wait_procs(children, timeout=30)
    assert not alive
    assert start(reviews, "--out", "out", "--cores", 2, cwd=tmp_path).wait(120) == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_tells_where_it_goes_on(reviews, expected, tmp_path, number):
    running = start(reviews, "--out", "out", "--cores", 2, cwd=tmp_path)
    while "counting" not in (line := running.stderr.readline()):
        assert line
    running.send_signal(number)
    told = running.communicate(timeout=60)[1]
    assert running.returncode == (130 if number == signal.SIGINT else 143)
    assert "Traceback" not in told
    assert re.search(r"what was done is kept in .*out\.work \([\d.]+ MB\): the same command goes on from it", told)
    assert start(reviews, "--out", "out", "--cores", 2, cwd=tmp_path).wait(120) == 0
    assert same(tmp_path / "out", expected)


def test_a_finished_dataset_is_not_made_again(reviews, expected, tmp_path, capfd):
    out = tmp_path / "out"
    shutil.copytree(expected, out)
    before = (out / MANIFEST).stat().st_mtime_ns
    _, told = run(capfd, reviews, "--out", out)
    assert f"{out} was made of these reviews with these settings: nothing to do" in told
    assert (out / MANIFEST).stat().st_mtime_ns == before
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["out"]
    # The runner, the cores and the order of inputs are no other settings; a word more or less is.
    assert "nothing to do" in run(capfd, reviews, "--out", out, "-r", "inline")[1]
    for other in (["--vocab-size", 50], ["--max-length", 20], ["--split", "test=10,train=90"]):
        assert "holds a dataset of other reviews or settings" in run(capfd, reviews, "--out", out, *other, status=2)[1]
    assert read_manifest(out) == read_manifest(expected)


def test_stages_are_done_again_from_the_first_that_a_change_touches(reviews, tmp_path, capfd):
    work, more = tmp_path / "work", tmp_path / reviews.name
    more.write_bytes(reviews.read_bytes() + b"".join(sample.lines(10, 99)))

    def call(name, *options, path=reviews):
        done = run(capfd, path, "--out", tmp_path / name, "--work", work, "-r", "inline", *options)[0]
        run(capfd, path, "--out", tmp_path / f"{name}-alone", "-r", "inline", *options)
        assert same(tmp_path / f"{name}-alone", tmp_path / name)
        return [title for title in TITLES if title not in done]

    assert call("first") == list(TITLES)
    assert call("same") == []
    assert call("words", "--vocab-size", 100) == ["counting words", "encoding"]
    assert call("length", "--vocab-size", 100, "--max-length", 20) == ["counting words", "encoding"]
    # Cleaning drops reviews of nothing but stop words; the shards that it reads were removed.
    assert call("stop", "--stop-words", "english") == list(TITLES)
    assert call("more", path=more) == list(TITLES)
    assert read_manifest(tmp_path / "more")["counts"]["lines"] == 3010


def test_a_damaged_work_folder_is_made_good(reviews, expected, tmp_path, capfd):
    work = tmp_path / "work"

    def call(name):
        return run(capfd, reviews, "--out", tmp_path / name, "--work", work, "-r", "inline")[0]

    call("a")
    (work / "count.json").write_text("{")
    (work / "encode.json").unlink()
    assert call("b") == list(TITLES[:2])
    shutil.rmtree(work / "clean")
    shutil.rmtree(work / "encode")
    assert call("c") == ["counting words"]
    for name in "abc":
        assert same(tmp_path / name, expected)


def test_two_calls_at_once_are_refused(reviews, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr("mr.stages._LOCK_TRIES", 1)
    running = start(reviews, "--out", "out", cwd=tmp_path)
    while "looking" not in (line := running.stderr.readline()):
        assert line
    _, told = run(capfd, reviews, "--out", tmp_path / "out", status=2)
    assert f"{tmp_path / 'out.work'}: another run is at work here" in told
    assert running.communicate(timeout=60)[0] is None
    assert running.returncode == 0


def test_what_an_unfinished_dataset_of_another_call_left_is_replaced(reviews, expected, tmp_path, capfd):
    out = tmp_path / "out"
    shutil.copytree(expected, out)
    (out / MANIFEST).unlink()
    (out / UNFINISHED).write_text(json.dumps({"key": "another", "parts": {"train/part-00000.h5": {}}}))
    (out / "train" / "part-00077.h5").write_bytes(b"left")
    run(capfd, reviews, "--out", out, "-r", "inline")
    assert same(out, expected)


def test_names_that_hadoop_or_mrjob_would_misread(reviews, expected, tmp_path, capfd):
    for name in ("a b", "a#b", "a[1]", "ä"):
        run(capfd, reviews, "--out", tmp_path / name, "-r", "local")
        assert same(tmp_path / name, expected)


def test_one_text_many_times_and_one_long_review(tmp_path, capfd):
    path = tmp_path / "reviews.jsonl"
    long = " ".join(f"word{number % 5000}" for number in range(1_000_000))
    reviews = [("the very same words", 1 + number % 5) for number in range(50_000)]
    reviews += [(long, 3), *((f"another one {number}", 4) for number in range(50))]
    path.write_text("".join(json.dumps({"reviewText": text, "overall": stars}) + "\n" for text, stars in reviews))
    assert path.stat().st_size > 10_000_000
    for runner in ("inline", "local"):
        run(capfd, path, "--out", tmp_path / runner, "-r", runner, "--cores", 2)
        counts = read_manifest(tmp_path / runner)["counts"]
        assert (counts["kept"], counts["duplicates"]) == (52, 49_999)
    assert same(tmp_path / "inline", tmp_path / "local")


def test_folders_of_others_are_never_taken_for_a_work_folder(reviews, tmp_path, capfd):
    theirs = tmp_path / "out.work"
    (theirs / "clean").mkdir(parents=True)
    (theirs / "clean" / "thesis.txt").write_text("x")
    for arguments in (["--out", tmp_path / "out"], ["--out", tmp_path / "other", "--work", theirs]):
        _, told = run(capfd, reviews, *arguments, status=2)
        assert "holds something else than a run's work" in told
    for work in (tmp_path / "out", tmp_path, tmp_path / "out" / "deep"):
        assert "may not hold --out" in run(capfd, reviews, "--out", tmp_path / "out", "--work", work, status=2)[1]
    for work in ("a#b", "a$HOME"):
        assert "mrjob misreads" in run(capfd, reviews, "--out", tmp_path / "o", "--work", tmp_path / work, status=2)[1]
    assert (theirs / "clean" / "thesis.txt").read_text() == "x"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["out.work"]


def test_a_mistaken_call_does_not_lose_what_was_done(reviews, expected, tmp_path, monkeypatch, capfd):
    (tmp_path / "empty.jsonl").touch()
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr("mr.driver.pack", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            main([str(reviews), "--out", str(out), "-r", "inline"])
    run(capfd, tmp_path / "empty.jsonl", "--out", out, status=2)
    assert (tmp_path / "out.work" / "encode").is_dir()
    assert run(capfd, reviews, "--out", out, "-r", "inline")[0] == list(TITLES[1:])
    assert same(out, expected)


def test_relative_folders(reviews, expected, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", "temporary")
    for runner in ("inline", "local"):
        run(capfd, reviews, "--out", runner, "--work", f"work-{runner}", "-r", runner, "--cores", 2)
        assert same(tmp_path / runner, expected)
    run(capfd, reviews, "--out", "other", "-r", "inline")
    assert same(tmp_path / "other", expected)
    assert not list((tmp_path / "temporary").iterdir())


def test_input_that_changes_while_it_is_read_is_told(reviews, tmp_path, monkeypatch, capfd):
    path = tmp_path / "growing.jsonl"
    shutil.copy(reviews, path)
    ingest = driver.ingest

    def grow(*arguments, **options):
        with path.open("ab") as file:
            file.write(b"".join(sample.lines(5, 77)))
        return ingest(*arguments, **options)

    monkeypatch.setattr("mr.driver.ingest", grow)
    assert "growing.jsonl: changed while it was read" in run(capfd, path, "--out", tmp_path / "out", status=2)[1]
    os.mkfifo(tmp_path / "pipe.jsonl")
    assert "no regular file" in run(capfd, tmp_path / "pipe.jsonl", "--out", tmp_path / "out", status=2)[1]


def test_two_runs_with_one_dataset_and_two_work_folders(reviews, tmp_path):
    out = tmp_path / "out"
    both = [start(reviews, "--out", out, "--work", tmp_path / name, "-r", "inline", cwd=tmp_path) for name in "ab"]
    told = [running.communicate(timeout=120)[1] for running in both]
    assert sorted(running.returncode for running in both) in ([0, 2], [0, 0])
    assert "another run" in "".join(told) or "nothing to do" in "".join(told)
    assert read_manifest(out)["counts"]["lines"] == 3000


@pytest.mark.parametrize("text", ["", "[]", "null", '{"key": 1}', "{"])
def test_damaged_records_are_made_anew(reviews, expected, tmp_path, monkeypatch, capfd, text):
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr("mr.driver.write_quarantine", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            main([str(reviews), "--out", str(out), "-r", "inline"])
    (out / UNFINISHED).write_text(text)
    (tmp_path / "out.work" / "clean.json").write_text(text)
    next((tmp_path / "out.work" / "count").glob("part-*")).write_bytes(b"")
    run(capfd, reviews, "--out", out, "-r", "inline")
    assert same(out, expected)
