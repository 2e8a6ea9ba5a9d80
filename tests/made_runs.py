"""RUN folders as engine.train writes them, of ranks whose speeds are known: what is said of them can be foretold."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from engine.config import TrainConfig
from engine.progress import shares_event
from engine.timeline import ends_of_parts

REST, EXCHANGE, INPUT = 0.01, 0.02, 0.001
"""seconds of a step beside compute"""
STARVED = 0.4


def make_run(
    folder: Path,
    *,
    ranks: int = 3,
    epochs: int = 3,
    steps: int = 40,
    speeds: Sequence[float] = (),
    other_speeds: Mapping[int, Sequence[float]] | None = None,
    shares: Sequence[int] = (),
    decisions: int = 3,
    profile: bool = True,
    starved: int | None = None,
    host: str = "host-",
    reason: str = "rank 0 was the slowest",
    options: Mapping[str, Any] | None = None,
    resumed_at: int | None = None,
    macro_f1: float = 0.70,
    more: Sequence[Mapping[str, Any]] = (),
    status: str = "finished",
) -> Path:
    """Write a run; returns its folder.

    Args:
        steps: of an epoch.
        speeds: rows per second per rank; by default the last rank is slower than all others.
        other_speeds: the same in single epochs, by number.
        shares: rows of a batch per rank; by default even.
        starved: a rank that waits for its input.
        macro_f1: what it is before the first epoch; each brings 0.01.
        more: events to be put in by their steps.
    """
    speeds = speeds or [200.0] * (ranks - 1) + [120.0]
    shares = shares or [32] * ranks
    batch = sum(shares)
    folder.mkdir(parents=True, exist_ok=True)
    config = {**TrainConfig(data="DATA", out=str(folder), epochs=max(1, epochs), batch_size=batch).to_json()}
    (folder / "config.json").write_text(json.dumps({**config, **(options or {})}))
    events: list[dict[str, Any]] = [_start(0, ranks, host, shares)]
    events.append(shares_event(0, shares, "start", 0.0))
    if profile:
        sizes = (8, 16, 32, 64, 128)
        points = [[[32, rows, rows / speed] for rows in sizes] for speed in speeds]
        events.append({"event": "profile", "step": 0, "points": points})
    for number in range(decisions):
        step = 1 + number * epochs * steps // max(1, decisions)
        events.append(shares_event(step, shares, f"{reason} ({number})", 0.1, changed=number % 2 == 0))
        events.append({"event": "gain", "step": step, "decided_at": step, "predicted_gain": 0.1, "achieved_gain": 0.08})
    for epoch in range(1, epochs + 1):
        events += _epoch(epoch, steps, (other_speeds or {}).get(epoch, speeds), shares, starved, macro_f1)
    if resumed_at is not None:
        events.append(_start(resumed_at, ranks, host, shares))
    events += [dict(event) for event in more]
    events.sort(key=lambda event: event["step"])
    if epochs:
        failed = {"error": "out of luck"} if status == "failed" else {}
        end = {"event": "end", "step": epochs * steps, "status": status, "weights_digest": "ab" * 32, "time": 2e9 + 90}
        events.append({**end, **failed})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    return folder


def _start(step: int, ranks: int, host: str, shares: Sequence[int]) -> dict[str, Any]:
    places = [
        {"host": f"{host}{rank // 2}", "device": "cpu", "threads": 1, "processor": "a CPU"} for rank in range(ranks)
    ]
    dataset = {"rows": {"train": 4000, "validation": 100}, "words": 50, "bounds": [16, 32], "bucket_rows": [1000, 3000]}
    return {
        "event": "start", "step": step, "versions": {"python": "3.11", "torch": "2"}, "ranks": ranks, "hosts": places,
        "dataset_digest": "cd" * 32, "dataset": dataset, "parameters": 1_234_567, "shares": list(shares), "time": 2e9,
    }  # fmt: skip


def _epoch(
    epoch: int, steps: int, speeds: Sequence[float], shares: Sequence[int], starved: int | None, macro_f1: float
) -> list[dict[str, Any]]:
    """All that an epoch records; every step takes each rank the same."""
    first = (epoch - 1) * steps
    ranks = len(shares)
    compute = [share / speed for share, speed in zip(shares, speeds, strict=True)]
    read = [STARVED if rank == starved else INPUT for rank in range(ranks)]
    ready = [c + i for c, i in zip(compute, read, strict=True)]
    wait = [max(ready) - own + EXCHANGE for own in ready]
    step_seconds = max(ready) + EXCHANGE + REST
    events: list[dict[str, Any]] = [
        {"event": "step", "step": step, "epoch": epoch, "loss": 0.7 / (1 + step / 50), "learning_rate": 0.01 / epoch}
        for step in range(first + 5, first + steps + 1, 5)
    ]
    ends = ends_of_parts(steps, ranks).tolist()
    sizes = [end - before for before, end in zip([0, *ends[:-1]], ends, strict=True)]

    def table(per_step: Sequence[float]) -> list[list[float]]:
        return [[value * size for size in sizes] for value in per_step]

    events.append({
        "event": "timeline", "step": first + steps, "epoch": epoch, "first_step": first + 1,
        "seconds": step_seconds * steps, "longest_compute_seconds": max(compute) * steps,
        "longest_ready_seconds": max(ready) * steps, "least_wait_seconds": min(wait) * steps,
        "last_steps": [steps if own == max(ready) else 0 for own in ready], "ends": [first + end for end in ends],
        "rows": table(shares), "compute_seconds": table(compute), "input_seconds": table(read),
        "wait_seconds": table(wait),
    })  # fmt: skip
    validation = {
        "loss": 0.5 / epoch, "accuracy": 0.8, "macro_f1": macro_f1 + 0.01 * epoch, "null_accuracy": 0.7,
        "null_macro_f1": 0.41, "confusion": [[20, 10], [10, 60]], "rows": 100,
    }  # fmt: skip
    events.append({
        "event": "epoch", "step": first + steps, "epoch": epoch, "train_loss": 0.6 / epoch, "validation": validation,
        "seconds": step_seconds * steps, "rows": sum(shares) * steps, "rows_per_second": sum(shares) / step_seconds,
        "skipped_steps": 0, "nonfinite_steps": 0, "shares": list(shares),
        "compute_seconds": [value * steps for value in compute], "input_seconds": [value * steps for value in read],
        "wait_seconds": [value * steps for value in wait],
        "starved_ranks": [] if starved is None else [starved], "time": 2e9 + 30 * epoch,
    })  # fmt: skip
    return events
