"""A rank that hangs, is killed or is cut off: the others end in time and say which rank on which host it was."""

from __future__ import annotations

import signal
import socket
import time

import pytest
from jobs import alive, command, events, options, ranks_of, run, start, wait_until

HOST = socket.gethostname()


@pytest.mark.parametrize("victim", [0, 1])
def test_a_stopped_rank_ends_the_job_in_time(data, undisturbed, tmp_path, victim):
    out = tmp_path / "run"
    job = start(*command(3, *options(data, out), "--rank-timeout", 3))
    wait_until(lambda: any(event["event"] == "step" and event["step"] >= 32 for event in events(out)), "step 32")
    ranks = ranks_of(job)
    ranks[victim].send_signal(signal.SIGSTOP)
    began = time.monotonic()
    output, _ = job.communicate(timeout=60)
    assert job.returncode != 0
    assert time.monotonic() - began > 2.5  # not for some other reason
    wait_until(lambda: not any(alive(process) for process in ranks), "the end of all ranks")
    ours = [line for line in output.splitlines() if line.startswith("engine: ")]
    assert len(ours) == 1, output
    assert f"rank {victim} on {HOST} was not heard of for 3 s" in ours[0]
    done = run(*command(3, *options(data, out)))
    assert done.returncode == 0, done.stdout + done.stderr
    assert events(out)[-1]["weights_digest"] == events(undisturbed)[-1]["weights_digest"]


def test_a_short_stop_is_no_loss(data, undisturbed, tmp_path):
    out = tmp_path / "run"
    job = start(*command(3, *options(data, out), "--rank-timeout", 6))
    wait_until(lambda: any(event["event"] == "step" and event["step"] >= 32 for event in events(out)), "step 32")
    victim = ranks_of(job)[1]
    victim.send_signal(signal.SIGSTOP)
    time.sleep(2)
    victim.send_signal(signal.SIGCONT)
    output, _ = job.communicate(timeout=60)
    assert job.returncode == 0, output
    assert events(out)[-1]["weights_digest"] == events(undisturbed)[-1]["weights_digest"]


@pytest.mark.parametrize("victim", [0, 2])
def test_a_killed_rank_is_named(data, tmp_path, victim):
    out = tmp_path / "run"
    job = start(*command(3, *options(data, out)))
    wait_until(lambda: any(event["event"] == "step" and event["step"] >= 12 for event in events(out)), "step 12")
    ranks_of(job)[victim].kill()
    output, _ = job.communicate(timeout=60)
    assert f"rank {victim}" in output
    assert HOST in output
