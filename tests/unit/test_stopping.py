"""SIGTERM and Ctrl-C: one line and the right status, whenever they come."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mr import sample
from mr.stopping import Stopped, held, stoppable

ROOT = Path(__file__).parents[2]
SIGNALS = [signal.SIGINT, signal.SIGTERM]
TITLES = ("looking at", "reading the", "cleaning", "counting", "encoding", "writing")


@pytest.fixture(scope="module")
def reviews(tmp_path_factory):
    path = tmp_path_factory.mktemp("reviews") / "reviews.jsonl"
    path.write_bytes(b"".join(sample.lines(3000, 4)))
    return path


def start(*command: object, cwd: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *map(str, command)], cwd=cwd, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        start_new_session=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip


def one_line(told: str, number: signal.Signals) -> str:
    """The last line; all others tell of stages."""
    *stages, last = told.splitlines()
    assert all(line.startswith("[") for line in stages), told
    assert last.startswith(f"mr: stopped by {number.name}"), told
    return last


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("runner", ["local", "inline"])
@pytest.mark.parametrize("title", TITLES)
def test_a_run_is_stopped_in_any_stage(reviews, tmp_path, number, runner, title):
    running = start("-m", "mr", reviews, "--out", "out", "-r", runner, "--cores", 2, cwd=tmp_path)
    told = ""
    while title not in told:
        line = running.stderr.readline()
        assert line, told
        told += line
    running.send_signal(number)
    told += running.communicate(timeout=60)[1]
    if running.returncode == 0:
        assert title == TITLES[-1], told  # it was about to end
        return
    assert running.returncode == 128 + number, told
    last = one_line(told, number)
    assert ("what was done is kept in" in last) == (tmp_path / "out.work").exists()


SIGNAL_IN_A_FORK = """
import os, signal, sys
from mr.cli import main
number = int(sys.argv.pop(1))
os.register_at_fork(before=lambda: os.kill(os.getpid(), number))
sys.exit(main())
"""


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("runner", ["local", "inline"])
def test_a_signal_in_the_middle_of_a_fork_is_neither_lost_nor_a_traceback(reviews, tmp_path, number, runner):
    command = ("-c", SIGNAL_IN_A_FORK, int(number), reviews, "--out", "out", "-r", runner, "--cores", 2)
    running = start(*command, cwd=tmp_path)
    told = running.communicate(timeout=60)[1]
    assert running.returncode == 128 + number, told
    one_line(told, number)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_to_all_processes_is_still_one_line(reviews, tmp_path, number):
    """As Ctrl-C on a terminal sends it, or timeout."""
    running = start("-m", "mr", reviews, "--out", "out", "-r", "local", "--cores", 2, cwd=tmp_path)
    told = ""
    while "cleaning" not in told:
        line = running.stderr.readline()
        assert line, told
        told += line
    os.killpg(running.pid, number)
    os.killpg(running.pid, number)
    told += running.communicate(timeout=60)[1]
    assert running.returncode == 128 + number, told
    one_line(told, number)


def test_before_the_command_listens_ctrl_c_is_no_traceback(tmp_path):
    for name in ("mr", "native"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "sitecustomize.py").write_text(
        "import os, signal, sys\n"
        "class Finder:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'mr.cli':\n"
        "            os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Finder())\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-m", "mr", "--help"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGINT
    assert done.stderr == ""


@pytest.mark.parametrize("number", SIGNALS)
def test_what_is_held_is_not_interrupted(number):
    before = signal.getsignal(number)
    steps = []

    def work() -> None:
        with held():
            with held():
                signal.raise_signal(number)
                steps.append("inside")
            steps.append("between")
        steps.append("after")

    with pytest.raises(Stopped) as caught, stoppable():
        work()
    assert steps == ["inside", "between"]
    assert caught.value.status == 128 + number
    assert signal.getsignal(number) is before


def two_signals() -> None:
    try:
        signal.raise_signal(signal.SIGTERM)
    finally:
        signal.raise_signal(signal.SIGINT)


def test_a_second_signal_leaves_the_clean_up_alone_unless_it_hangs(monkeypatch):
    with pytest.raises(Stopped, match="SIGTERM"), stoppable():
        two_signals()
    ended = []
    monkeypatch.setattr("mr.stopping._AGAIN_SECONDS", 0.0)
    monkeypatch.setattr("mr.stopping.os._exit", ended.append)
    with pytest.raises(Stopped, match="SIGTERM"), stoppable():
        two_signals()
    assert ended == [130]
