"""What preprocessing tells: malformed lines and when they are too many, figures of the dataset, progress."""

import contextlib
import fcntl
import io
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections import Counter
from pathlib import Path

import pytest

from mr import sample
from mr.cli import main
from mr.progress import Progress
from mr.statistics import lengths_summary
from native.format import read_manifest
from native.text import SPLITS

ROOT = Path(__file__).parents[2]


def run(out, *arguments, status=0):
    assert main([*map(str, arguments), "--out", str(out), "-r", "inline"]) == status
    return read_manifest(out) if status == 0 else None


def write(path, good, bad):
    lines = [json.dumps({"text": f"number {number} of many", "rating": 1 + number % 5}) for number in range(good)]
    path.write_text("\n".join(lines + bad) + "\n")
    return path


def errors(capfd):
    return [line for line in capfd.readouterr().err.splitlines() if not line.startswith("[")]


BAD = ['{"text": ', '{"text": "a", "rating": 5', "[1]", '{"text": 5}']


def test_too_many_malformed_lines_stop_with_reasons_and_the_quarantine(tmp_path, capfd):
    bad = [*BAD, *['{"text": '] * 3]
    path = write(tmp_path / "x.json", 93, bad)
    write(tmp_path / "good.json", 20, [])
    run(tmp_path / "new" / "out", path, tmp_path / "good.json", status=2)
    [told] = errors(capfd)
    place = tmp_path / "new" / "out.quarantine.jsonl"
    assert "7 of 120 lines (5.83 %)" in told
    assert "7 of them in x.json" in told
    assert str(place) in told
    reasons = re.search(r"allows: (.*); each stands", told).group(1).split("; ")
    assert reasons == ["not JSON (Expecting value): 4", "not JSON (Expecting ',' delimiter): 1",
                       "not an object but a list: 1", "the text is a number, not a string: 1"]  # fmt: skip
    entries = [json.loads(line) for line in place.read_text().splitlines()]
    assert [(entry["file"], entry["line"], entry["start"]) for entry in entries] == [
        ("x.json", 94 + number, line) for number, line in enumerate(bad)]  # fmt: skip
    assert not (tmp_path / "new" / "out").exists()
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["good.json", "new", "x.json"]
    assert sorted(entry.name for entry in place.parent.iterdir()) == ["out.quarantine.jsonl", "out.work"]
    # As the message says, and in a place that the quarantine left free.
    way = re.search(r"let it pass with --max-malformed (\d+);", told).group(1)
    manifest = run(tmp_path / "new" / "out", path, tmp_path / "good.json", "--max-malformed", way)
    assert "cleaning, dropping duplicates: done before" in capfd.readouterr().err
    assert sorted(entry.name for entry in place.parent.iterdir()) == ["out", "out.quarantine.jsonl"]
    assert manifest["counts"]["malformed"] == 7
    assert (tmp_path / "new" / "out" / "quarantine.jsonl").read_bytes() == place.read_bytes()
    assert sum(manifest["statistics"]["malformed_reasons"].values()) == 7


@pytest.mark.parametrize(("good", "bad", "limit", "status"), [
    (19, 1, None, 2), (19, 1, "5", 0), (19, 1, "4.99", 2), (99, 1, None, 0), (98, 1, None, 2), (20, 0, "0", 0),
    (999, 1, "0", 2), (0, 3, "100", 2),
])  # fmt: skip
def test_the_limit_is_a_share_of_all_lines(tmp_path, capfd, good, bad, limit, status):
    path = write(tmp_path / "x.json", good, BAD[:1] * bad)
    run(tmp_path / "out", path, *(["--max-malformed", limit] if limit else []), status=status)
    assert (tmp_path / "out.quarantine.jsonl").exists() == (status == 2 and good > 0)
    assert len(errors(capfd)) == (status == 2)


def test_many_reasons_are_cut_short(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr("mr.quarantine._SHOWN_REASONS", 1)
    run(tmp_path / "out", write(tmp_path / "x.json", 5, BAD), status=2)
    assert "3 other reasons" in errors(capfd)[0]


def test_no_usable_review_names_the_fields(tmp_path, capfd):
    run(tmp_path / "out", write(tmp_path / "x.json", 5, []), "--columns", "text=review", status=2)
    [told] = errors(capfd)
    assert "5 lines (5 empty)" in told
    assert "--columns" in told
    assert "review" in told


def test_lengths():
    lengths = Counter([1] * 50 + [2] * 40 + [7] * 9 + [10])
    assert lengths_summary(lengths, 10) == {
        "mean": 2.03, "p50": 1, "p90": 2, "p99": 7, "longest": 10, "at_max_length": 1}  # fmt: skip
    assert lengths_summary({}, 10) == {
        "mean": 0, "p50": 0, "p90": 0, "p99": 0, "longest": 0, "at_max_length": 0}  # fmt: skip


@pytest.fixture(scope="module")
def reviews(tmp_path_factory):
    path = tmp_path_factory.mktemp("reviews") / "x.jsonl"
    path.write_bytes(b"".join(sample.lines(1500, 5)))
    return path


def test_figures_stand_in_the_manifest_and_on_the_screen(reviews, tmp_path, capfd):
    manifest = run(tmp_path / "out", reviews, "--vocab-size", 100, "--max-length", 40)
    shown = capfd.readouterr().out
    figures = manifest["statistics"]
    for split in SPLITS:
        lengths, rows = figures["lengths"][split], manifest["splits"][split]["rows"]
        assert lengths["mean"] * rows == pytest.approx(figures["tokens"][split], rel=0.01)
        assert 0 < lengths["p50"] <= lengths["p90"] <= lengths["p99"] <= lengths["longest"] == 40
        assert f"{lengths['mean']:.1f}" in shown
    words = figures["training_words"]
    assert words["coverage"] == pytest.approx(words["in_vocabulary"] / words["all"], abs=1e-6)
    assert f"{words['coverage']:.2%} of the training text" in shown
    assert f"{manifest['counts']['malformed']:,}" in shown
    assert "malformed: not JSON" in shown
    assert len(shown.splitlines()) < 25
    again = run(tmp_path / "again", reviews, "--vocab-size", 100, "--max-length", 40)
    assert again == manifest


@pytest.mark.parametrize("split", ["test", "validation"])
def test_pure_test_sets(reviews, tmp_path, capfd, split):
    """All rows in one split, the other dataset's vocabulary, and nothing told that is not known."""
    run(tmp_path / "old", reviews, "--vocab-size", 50, "--max-length", 30)
    old = read_manifest(tmp_path / "old")
    capfd.readouterr()
    new = write(tmp_path / "new.json", 80, [])
    manifest = run(tmp_path / "new", new, "--vocabulary-from", tmp_path / "old", "--split", f"{split}=100")
    shown = capfd.readouterr().out
    assert {name: manifest["splits"][name]["rows"] for name in SPLITS} == {
        name: 80 * (name == split) for name in SPLITS}  # fmt: skip
    assert (tmp_path / "new" / "vocabulary.txt").read_bytes() == (tmp_path / "old" / "vocabulary.txt").read_bytes()
    assert manifest["text"] == old["text"]
    assert manifest["statistics"]["unknown_share"][split] > 0.3
    assert manifest["statistics"]["training_words"]["coverage"] is None
    assert "50 words of another dataset" in shown
    assert "nan" not in shown


class Terminal(io.StringIO):
    def isatty(self):
        return True


def stages(stream):
    progress = Progress(2, stream)
    with progress.stage("reading") as stage:
        for step in range(1, 1001):
            stage.tell(step / 1000, step * 50, step * 1000)
    with progress.stage("packing", "rows") as stage:
        stage.tell(0.0, 0)
        stage.tell(2.0, 7)
    return stream.getvalue()


def test_plain_progress_is_a_line_now_and_then(monkeypatch):
    shown = stages(io.StringIO()).splitlines()
    assert len(shown) == 4
    assert shown[0] == "[1/2] reading ..."
    assert re.fullmatch(r"\[1/2\] reading: 50,000 lines, [\d,.]+ MB/s, \d+\.\d s", shown[1])
    assert re.fullmatch(r"\[2/2\] packing: 7 rows, [\d,]+ a second, \d+\.\d s", shown[3])
    monkeypatch.setattr("mr.progress.LINE_SECONDS", 0)
    shown = stages(io.StringIO()).splitlines()
    assert re.fullmatch(r"\[1/2\] reading: 50%, 25,000 lines, [\d,.]+ MB/s, \d+\.\d s left", shown[500])


def test_a_terminal_has_a_bar_and_keeps_a_line_a_stage(monkeypatch):
    monkeypatch.setattr("mr.progress.RENEW_SECONDS", 0)
    shown = stages(Terminal())
    assert re.search(r"\r\[1/2\] reading  50%\|.*\| 25,000 lines, [\d,.]+ MB/s, \d+\.\d s left", shown)
    assert shown.count("\n") == 2
    assert shown.split("\r")[-1].startswith("[2/2] packing: 7 rows")


def test_a_stage_that_fails_claims_nothing():
    stream = io.StringIO()
    with pytest.raises(ZeroDivisionError), Progress(1, stream).stage("reading"):
        raise ZeroDivisionError
    assert stream.getvalue() == "[1/1] reading ...\n"


@pytest.mark.parametrize("runner", ["inline", "local"])
def test_jobs_are_watched_from_beginning_to_end(reviews, tmp_path, capfd, monkeypatch, runner):
    monkeypatch.setattr("mr.progress.LINE_SECONDS", 0)
    monkeypatch.setattr("mr.progress.RENEW_SECONDS", 0.01)
    monkeypatch.setattr("mr.meter._ADD_BYTES", 1000)
    assert main([str(reviews), "--out", str(tmp_path / "out"), "-r", runner, "--cores", "2"]) == 0
    shown = capfd.readouterr().err
    for stage in ("reading the input", "cleaning, dropping duplicates", "counting words", "encoding", "writing"):
        parts = [int(part) for part in re.findall(rf"\] {stage}.*: (\d+)%", shown)]
        assert parts == sorted(parts), stage
        assert parts[-1] == 100, stage
    assert "cleaning, dropping duplicates: 1,500 lines" in shown


def test_the_command_on_a_terminal(reviews, tmp_path):
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 25, 120, 0, 0))
    command = [sys.executable, "-m", "mr", str(reviews), "--out", str(tmp_path / "out"), "--cores", "2"]
    with (tmp_path / "stdout").open("wb") as stdout:
        running = subprocess.Popen(command, cwd=ROOT, stdout=stdout, stderr=slave)
    os.close(slave)
    shown = ""
    with contextlib.suppress(OSError):  # which is how a terminal ends
        while block := os.read(master, 1 << 16):
            shown += block.decode()
    os.close(master)
    assert running.wait() == 0, shown
    assert "[3/6] cleaning, dropping duplicates   0%|" in shown
    assert shown.count("\n") == 6
    assert "digest" in (tmp_path / "stdout").read_text()
