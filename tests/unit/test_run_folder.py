"""One run at a time writes to a folder, and none to a dataset's."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from engine import run_folder
from engine.errors import UsageError
from engine.run_folder import give_run_folder_back, take_run_folder

ROOT = Path(__file__).resolve().parents[2]
OTHER = """
import sys, pathlib, time
from engine.run_folder import take_run_folder
take_run_folder(pathlib.Path(sys.argv[1]))
print("taken", flush=True)
time.sleep(60)
"""


def test_another_process_is_refused_until_the_first_has_ended_however_it_did(tmp_path, monkeypatch):
    folder = tmp_path / "a" / "run"
    other = subprocess.Popen([sys.executable, "-c", OTHER, str(folder)], cwd=ROOT, stdout=subprocess.PIPE)
    try:
        assert other.stdout.readline() == b"taken\n"
        monkeypatch.setattr(run_folder, "PATIENCE", 0.3)
        with pytest.raises(UsageError, match="another run writes there"):
            take_run_folder(folder)
    finally:
        other.kill()
        other.wait()
    take_run_folder(folder)
    take_run_folder(folder)  # a process's own
    assert not list(folder.iterdir())
    give_run_folder_back(folder)
    give_run_folder_back(folder)


def test_what_is_given_back_another_process_may_take(tmp_path):
    take_run_folder(tmp_path / "run")
    give_run_folder_back(tmp_path / "run")
    with subprocess.Popen(
        [sys.executable, "-c", OTHER, str(tmp_path / "run")], cwd=ROOT, stdout=subprocess.PIPE
    ) as one:
        assert one.stdout.readline() == b"taken\n"
        one.kill()


def test_a_file_system_without_locks_takes_nothing_away(tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError(9, "Bad file descriptor")

    monkeypatch.setattr("fcntl.flock", no_locks)
    take_run_folder(tmp_path)
    give_run_folder_back(tmp_path)


def test_a_dataset_is_no_folder_for_a_run(tmp_path):
    (tmp_path / "dataset.json").write_text("{}")
    with pytest.raises(UsageError, match="holds a dataset"):
        take_run_folder(tmp_path)


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="cannot be written"):
        take_run_folder(tmp_path / "file" / "run")
