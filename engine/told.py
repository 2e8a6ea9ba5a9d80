"""The events of metrics.jsonl that people are told too, in words. Pure."""

from __future__ import annotations

from typing import Any


def lines_of(event: dict[str, Any], ranks: int) -> list[str]:
    """Lines for people; none for events that only programs need.

    Args:
        event: of metrics.jsonl.
        ranks: how many there are.
    """
    kind = event["event"]
    if kind == "epoch":
        return [_epoch(event), *(_starved(event, rank) for rank in event["starved_ranks"])]
    if kind == "nonfinite":
        rows = "; ".join(f"rank {rank}: rows {numbers}" for rank, numbers in event["rows"].items())
        return [
            f"warning: step {event['step']} was left out, its loss or gradient is not a finite number "
            f"({rows or 'their sum over the ranks'}); {event['skipped']} such steps so far"
        ]
    if kind == "gain":
        predicted, achieved = event["predicted_gain"], event["achieved_gain"]
        return [f"step {event['step']}: that change has gained {achieved:.1%} ({predicted:.1%} expected)"]
    if kind == "shares" and ranks > 1 and event["changed"]:
        where = "" if event["bucket"] is None else f" of length {event['bucket']}"
        return [f"step {event['step']}: shares{where} {event['shares']} ({event['reason']})"]
    return []


def _epoch(event: dict[str, Any]) -> str:
    figures = event["validation"]
    text = f"epoch {event['epoch']}: loss {event['train_loss']:.4f}"
    if figures:
        text += (
            f", validation loss {figures['loss']:.4f}, accuracy {figures['accuracy']:.4f} "
            f"(always the most frequent class: {figures['null_accuracy']:.4f}), macro-F1 {figures['macro_f1']:.4f}"
        )
    compute = event["compute_seconds"]
    text += f", {event['seconds']:.1f} s, {event['rows_per_second']:,.0f} rows/s"
    if len(compute) > 1 and max(compute):
        text += f", mean/max compute {sum(compute) / len(compute) / max(compute):.2f}"
    return text


def _starved(event: dict[str, Any], rank: int) -> str:
    part = event["input_seconds"][rank] / event["seconds"]
    return (
        f"warning: rank {rank} waited {part:.0%} of the epoch for its input, which no shares can mend: its "
        "storage or its reader is slow; put the dataset on a faster disk, or give the rank more cores"
    )
