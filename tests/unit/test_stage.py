"""Node-local copies on one rank: made, reused, damaged, killed, two jobs at once, no space."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

import native
from engine import node_copy
from engine.bytes_shown import BytesShown, in_words
from engine.errors import UsageError
from engine.stage import stage
from native.index import index_path
from tests.synthetic import write_dataset

ROOT = Path(__file__).resolve().parents[2]
PART = "train/part-00000.h5"
# A process that stages with pieces of 1 KiB and a pause after each, so that there is a middle to be killed in.
SLOW = """
import sys, time
from pathlib import Path
from engine import node_copy

digest = node_copy._digest
def slowly(path, take):
    def wait(piece):
        time.sleep(float(sys.argv[3]))
        take(piece)
    return digest(path, wait)
node_copy.PIECE = 1 << 10
node_copy._digest = slowly
made = node_copy.NodeCopy(Path(sys.argv[1]), Path(sys.argv[2]), lambda line: print(line, flush=True), True).make()
print("copied" if made.copied else "reused", made.path, flush=True)
"""


@pytest.fixture
def data(tmp_path) -> Path:
    write_dataset(tmp_path / "data")
    return tmp_path / "data"


@pytest.fixture
def local(tmp_path) -> Path:
    return tmp_path / "local"


def alone() -> SimpleNamespace:
    """A session of one rank."""
    comm = SimpleNamespace(allgather=lambda value: [value], Ibarrier=lambda: SimpleNamespace(Test=lambda: True))
    return SimpleNamespace(rank=0, root=True, comm=comm)


def copy(data: Path, local: Path) -> tuple[Path, list[str]]:
    said: list[str] = []
    return stage(data, local, alone(), said.append), said


def slow(data: Path, local: Path, pause: float = 0.002) -> subprocess.Popen[str]:
    local.mkdir(exist_ok=True)
    return subprocess.Popen(
        [sys.executable, "-c", SLOW, str(data), str(local), str(pause)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def wait_for_middle(job: subprocess.Popen[str], local: Path) -> None:
    """Until a slow job is in the middle of copying."""
    while not any((folder / PART).exists() for folder in unfinished(local)):
        assert job.poll() is None
        time.sleep(0.005)


def unfinished(local: Path) -> list[Path]:
    return list(local.glob(".*.part"))


def same_rows(one: Path, other: Path) -> bool:
    for split in ("train", "validation"):
        with native.open_dataset(one, split) as a, native.open_dataset(other, split) as b:
            x, y = a.read(range(len(a))), b.read(range(len(b)))
            if not ((x.tokens == y.tokens).all() and (x.stars == y.stars).all() and a.digest == b.digest):
                return False
    return True


def test_a_copy_is_made_once_and_holds_what_training_reads(data, local):
    made, said = copy(data, local)
    digest = native.read_manifest(data)["digest"]
    assert made == local / digest[:16]
    assert len(said) == 1
    assert "copied and verified on 1 node" in said[0]
    assert same_rows(data, made)
    assert index_path(made / PART).read_bytes() == index_path(data / PART).read_bytes()
    assert not (made / "test").exists()
    assert not unfinished(local)
    before = (made / PART).stat().st_ino
    again, said = copy(data, local)
    assert again == made
    assert "the copy of an earlier job was verified" in said[0]
    assert (made / PART).stat().st_ino == before
    # The original is not needed for reading it.
    shutil.rmtree(data / "train")
    with native.open_dataset(made) as opened:
        assert len(opened) == 1133


def test_without_a_folder_nothing_is_copied(data):
    assert stage(data, None, alone(), pytest.fail) == data


def test_another_dataset_gets_a_copy_of_its_own(data, local, tmp_path):
    write_dataset(tmp_path / "other", seed=6)
    first, second = copy(data, local)[0], copy(tmp_path / "other", local)[0]
    assert first != second
    assert same_rows(data, first)
    assert same_rows(tmp_path / "other", second)


@pytest.mark.parametrize("damage", ["flipped bit", "shorter", "missing", "manifest", "vocabulary", "a file"])
def test_a_damaged_copy_is_made_again(data, local, damage):
    made, _ = copy(data, local)
    part = made / PART
    content = bytearray(part.read_bytes())
    if damage == "flipped bit":
        content[len(content) // 2] ^= 1
        part.write_bytes(content)
    elif damage == "shorter":
        part.write_bytes(content[:-1])
    elif damage == "missing":
        part.unlink()
    elif damage == "a file":
        shutil.rmtree(made)
        made.write_text("not a folder")
    else:
        path = made / {"manifest": "dataset.json", "vocabulary": "vocabulary.txt"}[damage]
        path.write_bytes(path.read_bytes()[:-9])
    again, said = copy(data, local)
    assert again == made
    assert "warning:" in said[0]
    assert "made again" in said[0]
    assert same_rows(data, made)
    assert not unfinished(local)


def test_index_files_follow_the_original(data, local):
    """They are optional: a copy that lacks one, has a damaged one or one too many is mended, not made again."""
    index = index_path(data / PART)
    content = index.read_bytes()
    index.unlink()
    made, _ = copy(data, local)
    here, before = index_path(made / PART), (made / PART).stat().st_ino
    assert not here.exists()
    index.write_bytes(content)
    for damaged in (None, content[:-1]):
        if damaged is not None:
            here.write_bytes(damaged)
        copy(data, local)
        assert here.read_bytes() == content
    index.unlink()
    copy(data, local)
    assert not here.exists()
    assert (made / PART).stat().st_ino == before


@pytest.mark.parametrize("name", [PART, "vocabulary.txt", "validation/part-00000.index"])
def test_a_damaged_original_is_an_error_that_names_the_file(data, local, name):
    path = data / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(UsageError, match=rf"{name}: does not fit its digest"):
        copy(data, local)
    assert not unfinished(local)
    assert not [path for path in local.iterdir() if not path.name.startswith(".")]


def test_no_dataset_is_an_error(tmp_path, local):
    with pytest.raises(UsageError, match="no such folder"):
        copy(tmp_path / "nowhere", local)


def test_the_folder_of_copies_may_be_where_the_data_is(data, local):
    made, _ = copy(data, local)
    again, said = copy(made, local)
    assert again == made
    assert said == []
    part = made / PART
    part.write_bytes(b"damaged")
    assert copy(made, local)[0] == made
    assert part.read_bytes() == b"damaged"


def test_no_permission_and_a_file_in_the_way_leave_the_original(data, local):
    local.write_text("in the way")
    made, said = copy(data, local)
    assert made == data
    assert said[0].startswith("warning: ")
    assert "File exists" in said[0]


def test_a_missing_part_leaves_the_original_to_tell(data, local):
    (data / PART).unlink()
    made, said = copy(data, local)
    assert made == data
    assert "No such file" in said[0]


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A file system of 32 KiB; the small dataset needs more."""
    folder = tmp_path / "small"
    folder.mkdir()
    if os.geteuid() != 0:
        pytest.skip("root is needed to mount a small file system")
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=32k", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"no small file system: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_leaves_the_original(data, small_disk, monkeypatch):
    made, said = copy(data, small_disk)
    assert made == data
    assert "are needed" in said[0]
    # The space may go while the copy is made.
    monkeypatch.setattr(node_copy.NodeCopy, "_check_space", lambda *_: None)
    made, said = copy(data, small_disk)
    assert made == data
    assert said[0].startswith("warning: ")
    assert "No space left on device" in said[0]
    assert not unfinished(small_disk)
    assert [path.suffix for path in small_disk.iterdir()] == [".lock"]


def test_being_killed_leaves_nothing_that_looks_whole(data, local, tmp_path):
    write_dataset(tmp_path / "other", seed=6)
    for folder in (data, tmp_path / "other"):
        job = slow(folder, local)
        wait_for_middle(job, local)
        job.kill()
        job.wait()
        assert len(unfinished(local)) == 1  # the first one's was cleared away by the second one
        assert not [path for path in local.iterdir() if not path.name.startswith(".")]
    made, _ = copy(data, local)
    assert same_rows(data, made)
    assert not unfinished(local)


def test_an_unfinished_copy_of_a_job_that_lives_is_left_alone(data, local, tmp_path):
    write_dataset(tmp_path / "other", seed=6)
    job = slow(data, local)
    try:
        wait_for_middle(job, local)
        job.send_signal(signal.SIGSTOP)
        copy(tmp_path / "other", local)
        assert len(unfinished(local)) == 1
    finally:
        job.send_signal(signal.SIGCONT)
    output, _ = job.communicate(timeout=60)
    assert "copied" in output
    assert not unfinished(local)


def test_of_two_jobs_at_once_one_copies_and_the_other_waits(data, local):
    first = slow(data, local)
    wait_for_middle(first, local)
    first.send_signal(signal.SIGSTOP)
    second = slow(data, local, 0.0)
    assert second.stdout is not None
    assert second.stdout.readline().startswith("waiting for another job on this host")
    first.send_signal(signal.SIGCONT)
    outputs = [job.communicate(timeout=60)[0].split() for job in (first, second)]
    assert [output[0] for output in outputs] == ["copied", "reused"]
    assert outputs[0][1] == outputs[1][1]
    assert same_rows(data, Path(outputs[0][1]))


def test_of_many_jobs_at_once_one_copies(data, local):
    jobs = [slow(data, local, 0.0) for _ in range(3)]
    outputs = [job.communicate(timeout=60)[0].splitlines()[-1].split() for job in jobs]
    assert sorted(output[0] for output in outputs) == ["copied", "reused", "reused"]
    assert same_rows(data, Path(outputs[0][1]))


def test_a_job_that_holds_the_lock_and_hangs_is_not_waited_for_for_ever(data, local, monkeypatch):
    monkeypatch.setattr(node_copy, "STALL_SECONDS", 0.5)
    job = slow(data, local)
    try:
        wait_for_middle(job, local)
        job.send_signal(signal.SIGSTOP)
        made, said = copy(data, local)
    finally:
        job.kill()
        job.wait()
    assert made == data
    assert "waiting for another job" in said[0]
    assert "got no further" in said[1]


def test_progress_is_told_in_lines(monkeypatch):
    said: list[str] = []
    monkeypatch.setattr("engine.bytes_shown.LINE_SECONDS", 0.0)
    with BytesShown("copying", 4_000_000, True, said.append) as shown:
        time.sleep(0.01)
        shown.add(1_000_000)
    assert said[0].startswith("copying: 1 MB of 4 MB, ")
    assert "/s, " in said[0]
    with BytesShown("copying", 4_000_000, False, pytest.fail) as shown:
        shown.add(1_000_000)
    assert [in_words(n) for n in (12, 1500, 2_500_000, 12_345_000_000)] == ["12 bytes", "1.5 kB", "2.5 MB", "12.3 GB"]


def test_training_reads_the_copy(data, local, tmp_path):
    words = [sys.executable, "-m", "engine.train", "--data", data, "--out", tmp_path / "run", "--stage-dir", local]
    size = [
        "--epochs",
        1,
        "--hidden-size",
        4,
        "--embedding-size",
        4,
        "--ngram-entries",
        500,
        "--threads",
        1,
        "--device",
        "cpu",
    ]
    done = subprocess.run(
        [str(word) for word in (*words, *size)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert f"{data}: copied and verified on 1 node" in done.stdout
    part = next(local.glob(f"[0-9a-f]*/{PART}"))
    part.write_bytes(part.read_bytes()[:-1])
    again = subprocess.run(
        [str(word) for word in (*words, *size)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert again.returncode == 0, again.stderr
    assert "it is made again" in again.stdout
