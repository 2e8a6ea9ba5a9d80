"""What the metrics of a real run say of its ranks, so that another run on them can be simulated."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.errors import UsageError


@dataclass(frozen=True)
class Measured:
    """What an epoch of a real run says of its ranks."""

    epoch: int
    seconds: float
    rows: int
    batch_size: int
    steps: int
    rates: tuple[float, ...]
    """rows per second of compute, per rank"""
    step_seconds: float
    """of a step beyond the compute of the rank that computed longest"""


def read_metrics(path: Path) -> tuple[Measured, bool]:
    """The last epoch of a run's metrics.jsonl in which shares did not change, or else simply its last one.

    Returns:
        The epoch, and whether shares changed in it, so that its rates are rough.

    Raises:
        UsageError: no such file, or no epoch with rows and compute on every rank in it.
    """
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise UsageError(f"--metrics {path}: {error.strerror}; name the metrics.jsonl of a run") from None
    events = []
    for line in lines:
        try:
            event = json.loads(line)
        except ValueError:
            continue  # the last line of a run that was killed may be torn
        if isinstance(event, dict):
            events.append(event)
    epochs = [event for event in events if event.get("event") == "epoch"]
    if not epochs:
        raise UsageError(f"--metrics {path}: no epoch is finished in it; name the metrics.jsonl of a run with one")
    try:
        found = [_measured(event, epochs[number - 1]["step"] if number else 0) for number, event in enumerate(epochs)]
        changed = [_changes_inside(events, event, one.steps) for event, one in zip(epochs, found, strict=True)]
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise UsageError(f"--metrics {path}: its epochs are not those of engine.train ({error!r})") from None
    steady = [number for number, inside in enumerate(changed) if not inside]
    chosen = found[steady[-1] if steady else -1]
    if not all(chosen.rates):
        rank = chosen.rates.index(0.0)
        raise UsageError(
            f"--metrics {path}: rank {rank} had no rows in epoch {chosen.epoch}, so its speed is not known"
        )
    return chosen, not steady


def _measured(event: dict[str, Any], before: int) -> Measured:
    shares, compute = event["shares"], event["compute_seconds"]
    rates = [
        event["rows"] * share / sum(shares) / seconds if share and seconds else 0.0
        for share, seconds in zip(shares, compute, strict=True)
    ]
    steps = event["step"] - before
    rest = max(0.0, event["seconds"] - max(compute)) / steps
    return Measured(event["epoch"], event["seconds"], event["rows"], sum(shares), steps, tuple(rates), rest)


def _changes_inside(events: Sequence[dict[str, Any]], epoch: dict[str, Any], steps: int) -> bool:
    """Whether other shares began inside an epoch than stood at its beginning."""
    last = epoch["step"]
    tables: dict[Any, list[int]] = {}
    for event in events:
        if event.get("event") != "shares":
            continue
        bucket, first = event["bucket"], event["first_step"]
        if last - steps + 1 < first <= last and tables.get(bucket, event["shares"]) != event["shares"]:
            return True
        if first <= last:
            tables[bucket] = event["shares"]
    return False
