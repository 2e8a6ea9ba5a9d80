"""The events of metrics.jsonl that people are told too, in words. Pure."""

from __future__ import annotations

from typing import Any


class Teller:
    """Puts the events of a run into words, in their order.

    Args:
        ranks: how many there are.
    """

    def __init__(self, ranks: int) -> None:
        self._ranks = ranks
        self._evenness = 0.0
        """mean/max compute of the epoch's steps"""
        self._change: tuple[Any, ...] = ()
        """the change of shares that was told last"""

    def lines(self, event: dict[str, Any]) -> list[str]:
        """Lines for people; none for events that only programs need."""
        kind = event["event"]
        if kind == "timeline":
            # The longest of each step, not of the sums, in which a rank's late steps are made up for by another's.
            mean = sum(map(sum, event["compute_seconds"])) / self._ranks
            self._evenness = mean / event["longest_compute_seconds"] if event["longest_compute_seconds"] else 0.0
        if kind == "epoch":
            starved = (_starved(event, rank) for rank in event["starved_ranks"])
            return [_epoch(event, self._evenness), *starved]
        if kind == "nonfinite":
            rows = "; ".join(f"rank {rank}: rows {numbers}" for rank, numbers in event["rows"].items())
            return [
                f"warning: step {event['step']} was left out, its loss or gradient is not a finite number "
                f"({rows or 'their sum over the ranks'}); {event['skipped']} such steps so far"
            ]
        if kind == "gain":
            predicted, achieved = event["predicted_gain"], event["achieved_gain"]
            return [f"step {event['step']}: that change has gained {achieved:.1%} ({predicted:.1%} expected)"]
        if kind == "shares" and self._ranks > 1 and event["changed"]:
            return self._shares(event)
        return []

    def _shares(self, event: dict[str, Any]) -> list[str]:
        """A change that comes once for each length is told once."""
        change = event["step"], event["first_step"], event["reason"]
        if event["bucket"] is not None and change == self._change:
            return []
        self._change = change
        what = f"shares {event['shares']}" if event["bucket"] is None else "new shares for each length"
        gain = event["predicted_gain"]
        return [f"step {event['step']}: {what} ({event['reason']})" + (f", {gain:.1%} expected" if gain > 0 else "")]


def _epoch(event: dict[str, Any], evenness: float) -> str:
    figures = event["validation"]
    text = f"epoch {event['epoch']}: loss {event['train_loss']:.4f}"
    if figures:
        text += (
            f", validation loss {figures['loss']:.4f}, accuracy {figures['accuracy']:.4f} "
            f"(always the most frequent class: {figures['null_accuracy']:.4f}), macro-F1 {figures['macro_f1']:.4f}"
        )
    text += f", {event['seconds']:.1f} s, {event['rows_per_second']:,.0f} rows/s"
    return text + (f", mean/max compute {evenness:.2f}" if len(event["compute_seconds"]) > 1 and evenness else "")


def _starved(event: dict[str, Any], rank: int) -> str:
    part = event["input_seconds"][rank] / event["seconds"]
    return (
        f"warning: rank {rank} waited {part:.0%} of the epoch for its input, which no shares can mend: its "
        "storage or its reader is slow; put the dataset on a faster disk, or give the rank more cores"
    )
