"""The doctor with --data: everything that is wrong with a dataset, and nothing else."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import pytest

from engine import doctor
from native.index import index_path
from native.verify import verify
from tests.synthetic import forget_indexes, seal, write_dataset

ROOT = Path(__file__).parents[2]
PART = "train/part-00000.h5"


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("verify") / "data"
    write_dataset(folder)
    (folder / "quarantine.jsonl").touch()
    return folder


@pytest.fixture
def folder(made, tmp_path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "data"))


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 4
    path.write_bytes(data)


def chunk_offset(folder: Path, chunk: int) -> int:
    with h5py.File(folder / PART) as file:
        return int(file["0008"]["tokens"].id.get_chunk_info(chunk).byte_offset)


def problems(folder: Path, *, count: int) -> list[str]:
    found = verify(folder).problems
    assert len(found) == count, found
    assert not any("\n" in problem for problem in found)
    return found


def test_a_sound_dataset_has_no_problem(folder):
    seen: list[tuple[int, int]] = []
    report = verify(folder, lambda done, whole: seen.append((done, whole)))
    assert (report.problems, report.notes) == ([], [])
    assert (report.parts, report.rows, report.chunks) == (3, 1133 + 151 + 83, 18 + 3 + 2)
    assert report.bytes == sum(path.stat().st_size for path in folder.glob("*/*.h5"))
    assert seen[-1] == (2 * report.bytes, 2 * report.bytes)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_a_dataset_without_index_files_is_sound_and_that_is_noted(folder):
    forget_indexes(folder)
    report = verify(folder)
    assert report.problems == []
    assert len(report.notes) == 3
    assert "part-00000.h5: has no part-00000.index" in report.notes[0]
    assert report.rows == 1367


def test_all_that_is_wrong_is_found_at_once(folder):
    for chunk in (3, 5, 6, 7):
        flip(folder / PART, chunk_offset(folder, chunk) + 20)
    flip(folder / "validation/part-00000.index", 30)
    (folder / "test/part-00000.h5").unlink()
    (folder / "vocabulary.txt").write_text("other\n")
    (folder / "train/part-00007.h5").touch()
    (folder / "notes").mkdir()
    (folder / "notes" / "inside").touch()
    found = problems(folder, count=7)
    for problem, words in zip(
        found,
        [
            "vocabulary.txt: does not fit the digest",
            f"{PART}: does not fit its digest",
            f"{PART}: /0008/tokens, chunks 3, 5-7: its stored bytes do not fit their checksum",
            "validation/part-00000.index: does not fit its digest",
            "test/part-00000.h5: No such file or directory, but it is named",
            "notes: does not belong",
            "part-00007.h5: does not belong",
        ],
        strict=True,
    ):
        assert words in problem


def test_a_part_that_is_cut_is_told_by_its_sizes(folder):
    whole = (folder / PART).read_bytes()
    (folder / PART).write_bytes(whole[: len(whole) // 2])
    digest, cut = problems(folder, count=2)
    assert "does not fit its digest" in digest
    assert f"has {len(whole) // 2:,} bytes, its index file says {len(whole):,}" in cut
    index_path(folder / PART).unlink()
    assert "does not fit its digest" in problems(folder, count=1)[0]


def test_values_and_sums_of_a_wrong_writer_are_found(folder):
    manifest = json.loads((folder / "dataset.json").read_text())
    train = manifest["splits"]["train"]
    train["bucket_rows"] = train["bucket_rows"][::-1]
    train["stars"] = [1133, 0, 0, 0, 0]
    manifest["parts"][0]["tokens"] += 1
    (folder / "dataset.json").write_text(json.dumps(manifest))
    seal(folder)
    tokens, rows, stars = problems(folder, count=3)
    assert "tokens, dataset.json says" in tokens
    assert "bucket_rows are [700, 433], dataset.json says [433, 700]" in rows
    assert "dataset.json says [1133, 0, 0, 0, 0]" in stars


def test_a_damaged_manifest_is_the_only_thing_told(folder):
    (folder / "dataset.json").write_text((folder / "dataset.json").read_text().replace("uint16", "uint32"))
    (folder / PART).unlink()
    assert "digest does not fit its content" in problems(folder, count=1)[0]


@pytest.mark.parametrize("options", [[], ["--brief"], ["--json"]])
def test_the_command_tells_and_its_status_says_so(folder, options, capsys):
    assert doctor.main(["--data", str(folder), *options]) == 0
    good = capsys.readouterr()
    flip(folder / PART, chunk_offset(folder, 0) + 20)
    assert doctor.main(["--data", str(folder), *options]) == 1
    bad = capsys.readouterr()
    assert good.err == bad.err == ""
    if options == ["--json"]:
        assert json.loads(good.out)["problems"] == []
        found = json.loads(bad.out)
        assert len(found["problems"]) == 2
        assert (found["parts"], found["rows"]) == (3, 1367 - 64)
        return
    summary = "" if options else f"{folder}: all is right; 3 parts of "
    assert good.out.startswith(summary)
    assert good.out.count("\n") == bool(summary)
    lines = bad.out.splitlines()
    assert [line[:7] for line in lines[:2]] == ["wrong: ", "wrong: "]
    assert len(lines) == (2 if options else 3)
    assert options or "2 problems; 3 parts" in lines[2]


def test_where_there_is_no_dataset_the_status_is_2(tmp_path, capsys):
    for place, words in ((tmp_path, "no dataset.json"), (tmp_path / "nowhere", "no such folder")):
        assert doctor.main(["--data", str(place)]) == 2
        told = capsys.readouterr()
        assert told.out == ""
        assert told.err.startswith("engine.doctor: --data ")
        assert words in told.err
        assert told.err.count("\n") == 1


def test_neither_torch_nor_horovod_nor_mpi_is_needed(folder, tmp_path):
    for name in ("torch", "horovod", "mpi4py"):
        (tmp_path / f"{name}.py").write_text("raise ImportError('not here')")
    done = subprocess.run(
        [sys.executable, "-m", "engine.doctor", "--data", str(folder)],
        cwd=ROOT,
        env={"PYTHONPATH": f"{tmp_path}:{ROOT}", "PATH": "/usr/bin:/bin", "PYTHONSAFEPATH": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "all is right" in done.stdout
