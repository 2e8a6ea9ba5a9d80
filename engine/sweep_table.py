"""What came out of the trials of a sweep: read from their metrics.jsonl, gathered by setting, shown as a table."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from engine.sweep_space import Trial


@dataclass(frozen=True)
class Outcome:
    """A trial and what became of it."""

    trial: Trial
    state: str
    """"finished", "failed" (with the error behind a colon), "left out" or "unfinished\""""
    macro_f1: float | None = None
    """of the best epoch, on the validation split"""
    accuracy: float | None = None
    epoch: int = 0
    """the best one, counted from 1"""
    seconds: float = 0.0
    """of all its epochs, validation left out"""
    epochs: int = 0


def read_outcome(trial: Trial, folder: Path, state: str | None = None) -> Outcome:
    """What a trial's metrics.jsonl tells.

    Args:
        trial: whose it is.
        folder: of the trial.
        state: what is known of it; None takes it from the file.
    """
    epochs: list[dict[str, Any]] = []
    try:
        lines = (folder / "metrics.jsonl").read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        try:
            event = json.loads(line)
        except ValueError:  # a torn last line
            continue
        if event.get("event") == "start" and not event.get("step"):
            epochs.clear()
        elif event.get("event") == "epoch":
            epochs.append(event)
        elif event.get("event") == "end" and state is None:
            state = event["status"] if event["status"] != "failed" else f"failed: {event.get('error', '')}"
    judged = [event for event in epochs if event.get("validation")]
    state = state or "unfinished"
    if not judged:
        return Outcome(trial, state, seconds=sum(event["seconds"] for event in epochs), epochs=len(epochs))
    best = max(judged, key=lambda event: (event["validation"]["macro_f1"], -event["validation"]["loss"]))
    return Outcome(
        trial,
        state,
        best["validation"]["macro_f1"],
        best["validation"]["accuracy"],
        best["epoch"],
        sum(event["seconds"] for event in epochs),
        len(epochs),
    )


@dataclass(frozen=True)
class Line:
    """The trials of one setting."""

    settings: tuple[tuple[str, str], ...]
    outcomes: tuple[Outcome, ...]

    @property
    def scores(self) -> list[float]:
        """Macro-F1 of the finished trials."""
        return [o.macro_f1 for o in self.outcomes if o.state == "finished" and o.macro_f1 is not None]

    @property
    def score(self) -> float:
        """Their mean; below every score where there is none."""
        return fmean(self.scores) if self.scores else -1.0

    @property
    def spread(self) -> float | None:
        """Standard deviation over the seeds."""
        return stdev(self.scores) if len(self.scores) > 1 else None

    def mean(self, field: str) -> float | None:
        """Mean of a field over the finished trials."""
        values = [getattr(o, field) for o in self.outcomes if o.state == "finished" and getattr(o, field) is not None]
        return fmean(values) if values else None


def by_setting(outcomes: Sequence[Outcome]) -> list[Line]:
    """The outcomes of each setting together, the best setting first; equal ones in the order of the trials."""
    groups: dict[tuple[tuple[str, str], ...], list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault(outcome.trial.settings, []).append(outcome)
    lines = [Line(settings, tuple(members)) for settings, members in groups.items()]
    return sorted(lines, key=lambda line: -line.score)


def table(lines: Sequence[Line]) -> str:
    """A table for people, one line per setting, with what failed or was left out below."""
    names = [name for name, _ in lines[0].settings] if lines else []
    heads = [*names, "macro-F1", "+-", "accuracy", "best epoch", "seconds", "trials"]
    rows = [heads]
    for line in lines:
        done = len(line.scores)
        rows.append(
            [
                *(value for _, value in line.settings),
                _shown(line.score if done else None, ".4f"),
                _shown(line.spread, ".4f"),
                _shown(line.mean("accuracy"), ".4f"),
                _shown(line.mean("epoch"), ".1f"),
                _shown(line.mean("seconds"), ",.0f"),
                str(done) if done == len(line.outcomes) else f"{done} of {len(line.outcomes)}",
            ]
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(heads))]
    texts = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    others = [outcome for line in lines for outcome in line.outcomes if outcome.state != "finished"]
    return "\n".join([*texts, *(f"{outcome.trial.name}: {outcome.state}" for outcome in others)])


def _shown(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def to_json(lines: Sequence[Line]) -> list[dict[str, Any]]:
    """The table for programs."""
    return [
        {
            "settings": dict(line.settings),
            "macro_f1": line.score if line.scores else None,
            "macro_f1_deviation": line.spread,
            "accuracy": line.mean("accuracy"),
            "seconds": line.mean("seconds"),
            "trials": [
                {
                    "run": outcome.trial.name,
                    "seed": outcome.trial.seed,
                    "state": outcome.state,
                    "macro_f1": outcome.macro_f1,
                    "accuracy": outcome.accuracy,
                    "best_epoch": outcome.epoch or None,
                    "epochs": outcome.epochs,
                    "seconds": outcome.seconds,
                }
                for outcome in line.outcomes
            ],
        }
        for line in lines
    ]
