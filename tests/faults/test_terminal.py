"""Real runs as a person sees them: a view while they train, a sane terminal however they end, plain lines in a pipe."""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest
from jobs import ROOT, command, environment, options, ranks_of, run

from tests.terminals import Screen
from tests.traces import assert_sound
from tests.unit.test_view_live import HARMLESS

RANK_LINE = re.compile(r"^ +(\d) \S+ +\d+ +\d+\.\d% [█▒·]+ +\d+ +\d+ +\d+ +\S+[KMG] (computing|waiting)", re.MULTILINE)
COLOR = re.compile(rb"\x1b\[[0-9;]*3[1-7]m")


@pytest.fixture
def screen() -> Iterator[Screen]:
    made = Screen(100, 30)
    yield made
    made.close()


def start(screen: Screen, *line: object, **variables: str) -> subprocess.Popen[bytes]:
    """Start a job in front on a terminal of its own, as a shell does."""

    def take_terminal() -> None:
        os.setsid()
        fcntl.ioctl(screen.fd, termios.TIOCSCTTY, 0)

    return subprocess.Popen(
        [str(word) for word in line],
        env={**environment(), "TERM": "xterm-256color", **variables},
        cwd=ROOT,
        stdin=screen.fd,
        stdout=screen.fd,
        stderr=screen.fd,
        preexec_fn=take_terminal,
    )


def end(screen: Screen, job: subprocess.Popen[bytes]) -> int:
    """The job's status, when all that it wrote is on the screen."""
    screen.wait_for(lambda: job.poll() is not None, "the job's end")
    screen.settle()
    status: int = job.returncode
    return status


def assert_sane(screen: Screen, before: list[object]) -> None:
    """Nothing of a view is left, and the terminal is as it was."""
    assert not any("━" in line or "rows/s  " in line for line in screen.lines())
    assert_usable(screen, before)


def assert_usable(screen: Screen, before: list[object]) -> None:
    """The terminal is as it was."""
    assert not screen.screen.cursor.hidden
    assert screen.escapes() <= HARMLESS
    assert termios.tcgetattr(screen.fd) == before


def ranks_shown(screen: Screen) -> set[str]:
    return {found[1] for found in RANK_LINE.finditer("\n".join(screen.lines()))}


def test_two_ranks_are_seen_through_mpirun_and_leave_a_sane_terminal(screen, data, tmp_path):
    before = termios.tcgetattr(screen.fd)
    # Some 15 s on a machine that does nothing else: ranks tell of themselves once a second.
    job = start(screen, *command(2, *options(data, tmp_path / "run")), "--epochs", 60)
    screen.wait_for(lambda: ranks_shown(screen) == {"0", "1"}, "a line with figures of each rank")
    assert screen.shows("epoch ")
    assert COLOR.search(screen.raw)
    assert end(screen, job) == 0
    assert screen.text().count("finished; next: python -m engine.evaluate") == 1
    assert sum(line.startswith("epoch 1: loss") for line in screen.all_lines()) == 1
    assert_sane(screen, before)


def test_the_balancers_decisions_are_seen_and_no_color_is_respected(screen, data, tmp_path):
    before = termios.tcgetattr(screen.fd)
    arguments = [*options(data, tmp_path / "run"), "--balance", "auto", "--epochs", 10_000]
    job = start(screen, *command(2, *arguments), NO_COLOR="1")
    decision = re.compile(r"^step \d+: (kept: |\d+\.\d% expected)", re.MULTILINE)
    screen.wait_for(lambda: decision.search("\n".join(screen.lines())), "a decision in the view")
    job.send_signal(signal.SIGTERM)
    end(screen, job)
    assert not COLOR.search(screen.raw)
    assert_sane(screen, before)


def test_control_c_leaves_one_line_and_a_sane_terminal(screen, data, tmp_path):
    before = termios.tcgetattr(screen.fd)
    alone = [sys.executable, "-m", "engine.train", "--device", "cpu", "--threads", "1"]
    job = start(screen, *alone, *options(data, tmp_path / "run"), "--epochs", 10_000)
    later = re.compile(r"epoch ([2-9]|\d\d+)/10000")  # each one is over sooner than the view is drawn again
    screen.wait_for(lambda: later.search("\n".join(screen.lines())), "a later epoch")
    screen.type(b"\x03")
    assert end(screen, job) == 130
    assert len(re.findall(r"engine\.train: rank 0 on \S+ interrupted; the same command goes on", screen.text())) == 1
    assert_sane(screen, before)


def test_a_failed_run_tells_why_beneath_what_it_said(screen, data, tmp_path):
    before = termios.tcgetattr(screen.fd)
    far_too_fast = ["--optimizer", "sgd", "--learning-rate", 1e38, "--momentum", 1e10, "--clip-norm", 0]
    arguments = [*options(data, tmp_path / "run"), *far_too_fast]
    job = start(screen, *command(2, *arguments))
    assert end(screen, job) != 0
    assert screen.text().count("is not a finite number") == 1
    assert_sane(screen, before)


def test_a_rank_that_is_killed_is_named_on_a_usable_terminal(screen, data, tmp_path):
    before = termios.tcgetattr(screen.fd)
    job = start(screen, *command(2, *options(data, tmp_path / "run")), "--epochs", 10_000)
    screen.wait_for(lambda: ranks_shown(screen) == {"0", "1"}, "both ranks")
    ranks_of(job)[1].kill()
    assert end(screen, job) != 0
    assert "signal 9" in screen.text()
    # mpirun may end rank 0 before it can take its last picture away.
    assert_usable(screen, before)


def test_a_pipe_gets_plain_lines_by_time(data, tmp_path):
    done = run(*command(2, *options(data, tmp_path / "run")), "--epochs", 2, "--log-seconds", 0.02)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if re.match(r"epoch \d/2: step \d+ of 25", line)]
    assert lines
    assert any("rows/s" in line for line in lines)
    assert "\x1b" not in done.stdout + done.stderr


def test_what_a_run_can_record_is_recorded(data, tmp_path):
    out = Path(tmp_path / "run")
    more = ["--trace-steps", "20:30", "--horovod-timeline", "--tensorboard", "--view", "none", "--log-seconds", 0.01]
    done = run(*command(2, *options(data, out)), *more, "--epochs", 2)
    assert done.returncode == 0, done.stderr
    assert not re.search(r"epoch \d/2: step", done.stdout)
    assert_sound(json.loads((out / "trace-20-30.json").read_text()), 2, range(20, 31))
    assert {e["name"] for e in json.loads((out / "horovod-timeline.json").read_text()) if "name" in e} > {"ALLREDUCE"}
    assert {path.name for path in out.iterdir()} == {
        "checkpoints", "config.json", "metrics.jsonl", "report.html",
        "tensorboard", "trace-20-30.json", "horovod-timeline.json",
    }  # fmt: skip
