"""benchmarks.preprocess runs and says what it must; its ways make the same dataset. Never how fast."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import h5py
import numpy as np
import pytest

from benchmarks.preprocess import stage_seconds
from benchmarks.preprocess_bare import preprocess
from benchmarks.preprocess_estimate import FULL_MB, estimates, table
from benchmarks.preprocess_input import generate, generated, sound_slice
from benchmarks.preprocess_watch import timed, watched
from benchmarks.preprocess_ways import Bench, Way
from mr.cli import main as mr
from mr.stopwords import ENGLISH

ROOT = Path(__file__).parents[2]


def run(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, cwd=ROOT)


def test_the_command_ends_with_its_figures(tmp_path):
    options = ["--lines", 300, "--original-lines", 150, "--rounds", 1, "--cores", 1]
    result = run("benchmarks.preprocess", *options, "--workdir", tmp_path / "w", "--result", tmp_path / "result.json")
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout.splitlines()[-1])
    assert found == json.loads((tmp_path / "result.json").read_text())
    assert found["ours_mb_per_s"] > 0
    assert found["bare_loop_mb_per_s"] > 0
    assert found["original_mb_per_s"] is None or found["original_mb_per_s"] > 0
    assert len(found["ours_stages"]) == 6
    assert found["peak_memory_bytes"] > 10_000_000
    assert found["peak_temporary_bytes"] > 0
    assert set(found["missed"]) <= set(found["targets"])
    assert "ours_1_core / ours, time" in found["not_judged"]  # one core is not two
    assert not (tmp_path / "w" / "run").exists()
    told = run("benchmarks.preprocess_estimate", tmp_path / "result.json")
    assert told.returncode == 0, told.stderr
    assert told.stdout.count("\n") == 6


def test_the_memory_of_each_runner_is_told(tmp_path):
    options = ["--lines", 400, "--workdir", tmp_path, "--result", tmp_path / "result.json"]
    result = run("benchmarks.preprocess_memory", *options)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout.splitlines()[-1])
    assert found == json.loads((tmp_path / "result.json").read_text())
    assert list(found["runners"]) == ["local", "inline"]
    assert all(item["memory_bytes"] > 10_000_000 for item in found["runners"].values())
    assert found["missed"] == []
    assert not (tmp_path / "memory-run").exists()
    wrong = run("benchmarks.preprocess_memory", "--cores", 0)
    assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1)


@pytest.mark.parametrize("words", [["--lines", "0"], ["--rounds", "x"], ["--data", "/no/such/*.json"]])
def test_wrong_options_are_told_in_one_line(words, tmp_path):
    result = run("benchmarks.preprocess", *words, "--workdir", tmp_path)
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1].startswith("benchmarks.preprocess: ")


def test_generated_reviews_are_a_function_of_the_seed_and_have_the_dirt_of_real_ones(tmp_path):
    lines = list(generate(12_000, 3))
    assert lines == list(generate(12_000, 3))
    assert lines[:10] != list(generate(10, 4))
    texts: Counter[str] = Counter()
    broken = 0
    for line in lines:
        try:
            texts[json.loads(line).get("reviewText")] += 1
        except ValueError:
            broken += 1
    assert broken
    assert texts[""]
    assert sum(count - 1 for text, count in texts.items() if text) > 50
    assert sum(map(len, lines)) / len(lines) == pytest.approx(600, abs=100)
    path = generated(tmp_path, 500)
    sound = sound_slice(path, 400).read_bytes().splitlines()
    assert len(sound) == 400
    assert all(json.loads(line)["reviewText"] for line in sound)


@pytest.mark.parametrize("cores", [1, 3])
def test_the_bare_loop_makes_the_same_dataset(tmp_path, capsys, cores):
    path = tmp_path / "reviews.jsonl"
    path.write_bytes(
        b"\n".join([*generate(3000, 1), b"", b'{"overall": 5.0, "reviewText": "caf\\u00e9 \xf0\x9f\x98\x80"}'])
    )
    assert mr([str(path), "--out", str(tmp_path / "ours"), "-r", "inline"]) == 0
    (tmp_path / "between").mkdir()
    found = preprocess(path, tmp_path / "bare", cores, tmp_path / "between")
    ours = json.loads((tmp_path / "ours" / "dataset.json").read_text())
    assert found["digest"] == ours["digest"]
    assert found["counts"] == ours["counts"]


def test_the_originals_method_writes_every_row(tmp_path):
    path = tmp_path / "reviews.jsonl"
    reviews = [
        {"reviewerID": f"R{number}", "asin": "B1", "reviewText": f"The Box isn't {word}. Box!", "overall": 4.0}
        for number, word in enumerate(["good", "good", "bad"])
    ]
    path.write_text("".join(f"{json.dumps(review)}\n" for review in reviews))
    (tmp_path / "stop").write_text("\n".join(sorted(ENGLISH)))
    options = ["--out", tmp_path / "o.h5", "--stop-words", tmp_path / "stop", "--cores", 1]
    result = run("benchmarks.preprocess_original", path, *options)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout.splitlines()[-1])["rows_written"] == 3
    with h5py.File(tmp_path / "o.h5") as file:
        assert file["reviews"].chunks[0] == 1
        rows = file["reviews"][:]
    # box 6 times, good twice, bad once; "the" and "isn't" are stop words
    assert sorted(row[row > 0].tolist() for row in rows) == [[4, 2, 3, 2], [4, 2, 3, 2], [4, 2, 4, 2]]
    assert rows.dtype == np.uint16


def test_a_way_that_makes_another_dataset_is_told(tmp_path):
    ways = []
    for seed in (1, 2):
        path = tmp_path / f"{seed}.jsonl"
        path.write_bytes(b"\n".join(generate(200, seed)))
        ways.append(Way(f"seed {seed}", ["mr", "-r", "inline"], path, {0}))
    bench = Bench(tmp_path)
    bench.run(ways[0])
    with pytest.raises(ValueError, match="seed 2 made the dataset"):
        bench.run(ways[1])


def test_what_a_command_takes_is_seen(tmp_path):
    code = f"import time; a = bytearray(80 << 20); open({str(tmp_path / 'f')!r}, 'wb').write(a); time.sleep(1)"
    command = [sys.executable, "-c", code]
    peak = watched(command, tmp_path, tmp_path / "result", cores={0}, log=tmp_path / "log")
    assert 80e6 < peak.memory_bytes < 300e6
    assert peak.disk_bytes >= 80 << 20
    taken = timed([sys.executable, "-c", "print(sum(range(3_000_000)))"], tmp_path, cores={0}, log=tmp_path / "log")
    assert taken.out == "4499998500000\n"
    assert taken.cpu_seconds > 0
    with pytest.raises(OSError, match="status 3"):
        timed([sys.executable, "-c", "exit(3)"], tmp_path, cores={0}, log=tmp_path / "log")


def test_stage_times_are_read_from_what_is_told():
    told = (
        "[1/5] reading the input ...\n[1/5] reading the input: 45%, 10 lines, 2.0 MB/s, 3.0 s left\n"
        "[1/5] reading the input: 20,000 lines, 272.8 MB/s, 0.5 s\n"
        "[2/5] encoding: 1 min 05 s\n[3/5] a, b: 9 rows, 1 h 02 min\n"
    )
    assert stage_seconds(told) == {"reading the input": 0.5, "encoding": 65.0, "a, b": 3720.0}


def test_the_estimate_follows_its_formula():
    ways = {"ours": {"seconds": 6.0, "bytes": 100_000_000}, "ours_1_core": {"seconds": 10.0}}
    rows = estimates({"ways": ways, "peak_temporary_bytes": 300_000_000})
    # 2 s are serial, 8 s parallel, for 100 MB
    assert [row.hours for row in rows[:3]] == pytest.approx([FULL_MB / 100 / 3600 * s for s in (6.0, 3.0, 2.5)])
    assert rows[0].disk_gb == pytest.approx(276)
    assert rows[3].hours == pytest.approx(FULL_MB / 100 / 3600 * 2.5)
    assert rows[3].dollars == pytest.approx(rows[3].hours * 9 * 0.24)
    assert table(rows).splitlines()[2] == "| local, 2 cores | 1.5 | 276 GB | - |"
