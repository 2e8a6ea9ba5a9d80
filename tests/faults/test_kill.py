"""Killing any rank ends all of them with a message, and the next start goes on from the last checkpoint."""

from __future__ import annotations

import os

import h5py
import pytest
from jobs import alive, command, events, options, ranks_of, run, start, wait_until

from tests.synthetic import write_dataset


@pytest.mark.parametrize("victim", [0, 1, 2])
def test_killing_a_rank_ends_all_and_the_run_goes_on_bit_for_bit(data, undisturbed, tmp_path, victim):
    out = tmp_path / "run"
    job = start(*command(3, *options(data, out)))
    wait_until(lambda: any(event["event"] == "step" and event["step"] >= 32 for event in events(out)), "step 32")
    ranks = ranks_of(job)
    assert len(ranks) == 3
    ranks[victim].kill()
    output, _ = job.communicate(timeout=60)
    assert job.returncode != 0
    assert "signal 9" in output
    wait_until(lambda: not any(alive(process) for process in ranks), "the end of all ranks")
    assert not [event for event in events(out) if event["event"] == "end"]
    done = run(*command(3, *options(data, out)))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "going on from" in done.stdout
    expected = [event for event in events(undisturbed) if event["event"] == "step"]
    assert [event for event in events(out) if event["event"] == "step"] == expected
    assert events(out)[-1]["weights_digest"] == events(undisturbed)[-1]["weights_digest"]
    starts = [event["step"] for event in events(out) if event["event"] == "start"]
    assert starts[0] == 0
    assert starts[1] >= 30
    # The epoch's figures come out as if undisturbed, though its first steps were another process's.
    figures = [
        [
            (event["train_loss"], event["rows"], event["validation"])
            for event in events(path)
            if event["event"] == "epoch"
        ]
        for path in (out, undisturbed)
    ]
    assert figures[0] == figures[1]


def test_another_number_of_ranks_goes_on_along_the_same_trajectory(data, tmp_path):
    exact = ["--precision", "float64", "--dropout", 0]
    whole, out = tmp_path / "whole", tmp_path / "run"
    assert run(*command(1, *options(data, whole), *exact)).returncode == 0
    assert run(*command(3, *options(data, out), *exact, "--epochs", 1, "--shares", "2,0,1")).returncode == 0
    done = run(*command(2, *options(data, out), *exact, "--balance", "auto", "--rebalance-every", 5))
    assert done.returncode == 0, done.stdout + done.stderr
    losses = [[event["loss"] for event in events(path) if event["event"] == "step"] for path in (whole, out)]
    assert len(losses[0]) == len(losses[1]) == 200
    assert all(abs(a - b) <= 1e-10 * abs(a) for a, b in zip(*losses, strict=True))


@pytest.mark.parametrize("chunk", [3, 70])
def test_a_part_that_goes_bad_ends_all_ranks_with_one_line(tmp_path, chunk):
    """The damage lies in what one rank reads, the first or the last; that rank says so and all end."""
    out, copy = tmp_path / "run", tmp_path / "data"
    write_dataset(copy, rows={"train": (5000, 100), "validation": (9, 9), "test": (9, 9)})
    part = copy / "train/part-00000.h5"
    with h5py.File(part) as file:
        info = file["0008"]["tokens"].id.get_chunk_info(chunk)
    content = bytearray(part.read_bytes())
    content[info.byte_offset + info.size // 2] ^= 1
    part.write_bytes(content)
    done = run(*command(2, "--data", copy, "--out", out, "--epochs", 1, "--batch-size", 64, "--hidden-size", 8))
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    ours = [line for line in done.stderr.splitlines() if line.startswith("engine.train:")]
    assert len(ours) == 1, done.stderr
    assert f"part-00000.h5: /0008/tokens, chunk {chunk}: its stored bytes do not fit their checksum" in ours[0]
    assert not [event for event in events(out) if event.get("status") == "finished"]


def test_resume_auto_in_a_finished_run_says_so(data, undisturbed):
    before = (undisturbed / "metrics.jsonl").read_bytes()
    done = run(*command(2, *options(data, undisturbed)))
    assert done.returncode == 0
    assert "finished already" in done.stdout
    assert (undisturbed / "metrics.jsonl").read_bytes() == before


def test_wrong_usage_is_one_line_a_job_and_status_2(data, undisturbed, tmp_path):
    other = tmp_path / "other"
    write_dataset(other, rows={"train": (701, 433), "validation": (90, 61), "test": (50, 33)})
    cases = {
        "--epochs must be at least 1": ["--epochs", 0],
        "names 3 ranks, this run has 2": ["--shares", "1,2,3"],
        "--resume never": ["--resume", "never"],
        "no such checkpoint": ["--resume", tmp_path / "nowhere"],
        "--seed is 8, the checkpoint has 7": ["--seed", 8],
        "no dataset.json": ["--data", tmp_path],
        "is another dataset than the checkpoint's (it differs in rows of train)": ["--data", other],
        "not readable": ["--shares-from", tmp_path / "nowhere"],
    }
    for message, more in cases.items():
        done = run(*command(2, *options(data, undisturbed), *more))
        assert done.returncode == 2, (message, done.stderr)
        ours = [line for line in done.stderr.splitlines() if line.startswith("engine.train:")]
        assert len(ours) == 1, done.stderr
        assert message in ours[0]
        assert "Traceback" not in done.stderr


def test_a_damaged_last_checkpoint_is_passed_over(data, tmp_path):
    out = tmp_path / "run"
    assert run(*command(1, *options(data, out), "--epochs", 1)).returncode == 0
    last = out / "checkpoints" / os.readlink(out / "checkpoints/last")
    last.write_bytes(last.read_bytes()[:-1])
    done = run(*command(1, *options(data, out), "--epochs", 1))
    assert done.returncode == 0, done.stderr
    assert "warning:" in done.stdout
    assert "going on from" in done.stdout
    assert [event["step"] for event in events(out) if event["event"] == "step"] == list(range(1, 26))
