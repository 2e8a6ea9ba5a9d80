"""SIGTERM and SIGUSR1, to a rank or to the launcher: all ranks save and end, and the run goes on from there."""

from __future__ import annotations

import signal

import pytest
from jobs import alive, command, events, options, ranks_of, run, start, wait_until

REQUEUE = {signal.SIGTERM: 143, signal.SIGUSR1: 138}


@pytest.mark.parametrize(
    ("target", "number"),
    [
        ("rank 0", signal.SIGTERM),
        ("rank 1", signal.SIGUSR1),
        ("rank 2", signal.SIGTERM),
        ("launcher", signal.SIGUSR1),
        ("launcher", signal.SIGTERM),
    ],
)
def test_a_signal_saves_at_the_next_step_and_the_run_goes_on_bit_for_bit(data, undisturbed, tmp_path, target, number):
    out = tmp_path / "run"
    # No checkpoints of its own accord inside an epoch: what is saved was saved for the signal.
    job = start(*command(3, *options(data, out), "--checkpoint-every", 0, "--checkpoint-minutes", 0))
    wait_until(lambda: any(event["event"] == "step" and event["step"] >= 32 for event in events(out)), "step 32")
    ranks = ranks_of(job)
    seen = events(out)[-1]["step"]
    (job if target == "launcher" else ranks[int(target[-1])]).send_signal(number)
    output, _ = job.communicate(timeout=60)
    # After SIGTERM mpirun ends with 1, whatever its ranks ended with.
    by_mpirun = target == "launcher" and number == signal.SIGTERM
    assert job.returncode == (1 if by_mpirun else REQUEUE[number]), output
    wait_until(lambda: not any(alive(process) for process in ranks), "the end of all ranks")
    end, saved = events(out)[-1], int((out / "checkpoints" / "last").resolve().name[5:])
    if not by_mpirun or end["event"] == "end":
        assert (end["event"], end["status"]) == ("end", "preempted")
        assert f"stopped by {number.name} after step {end['step']}, which is saved" in output
        assert saved == end["step"]
    # mpirun gives its ranks a second; on a busy machine the checkpoint for the SIGCONT before it may be the last.
    assert saved >= seen
    assert "Traceback" not in output
    done = run(*command(3, *options(data, out)))
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"going on from step {saved}" in done.stdout
    steps = [[event for event in events(path) if event["event"] == "step"] for path in (out, undisturbed)]
    assert steps[0] == steps[1]
    assert events(out)[-1]["weights_digest"] == events(undisturbed)[-1]["weights_digest"]


def test_a_run_on_one_rank_without_a_launcher(data, tmp_path):
    out = tmp_path / "run"
    job = start(*command(1, *options(data, out))[6:])
    wait_until(lambda: any(event["event"] == "step" and event["step"] >= 20 for event in events(out)), "step 20")
    job.terminate()
    output, _ = job.communicate(timeout=60)
    assert job.returncode == 143, output
    assert "stopped by SIGTERM" in output
