"""What RUN/config.json and RUN/metrics.jsonl say, as far as it can be read.

The run may go on, the file may be torn, or of another version: nothing here trusts a field to be there or to be of its
kind. What is missing is None or empty, and is told as such.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.errors import UsageError


@dataclass(frozen=True)
class Start:
    """A process group began."""

    step: int
    ranks: int
    hosts: list[dict[str, Any]]
    versions: dict[str, str]
    digest: str
    dataset: dict[str, Any]
    parameters: float | None
    time: float | None


@dataclass(frozen=True)
class Epoch:
    """An epoch that is done; lists are per rank, and empty where they were not recorded."""

    number: int
    first_step: int
    step: int
    train_loss: float | None
    validation: dict[str, Any]
    seconds: float | None
    rows: float | None
    rows_per_second: float | None
    shares: list[float]
    compute: list[float]
    input: list[float]
    wait: list[float]
    starved: list[int]
    skipped: int
    nonfinite: int
    time: float | None

    def figure(self, name: str) -> float | None:
        """A number of the validation."""
        return number(self.validation.get(name))


@dataclass(frozen=True)
class Times:
    """A "timeline" event: steps of an epoch, their time per rank and part."""

    epoch: int
    first_step: int
    seconds: float
    longest_compute: float
    longest_ready: float
    least_wait: float
    last_steps: list[float]
    ends: list[int]
    rows: list[list[float]]
    """[rank][part], as the three below: seconds"""
    compute: list[list[float]]
    input: list[list[float]]
    wait: list[list[float]]

    @property
    def steps(self) -> int:
        """How many."""
        return self.ends[-1] - self.first_step + 1


@dataclass
class Decision:
    """What the balancer decided at a step, for all lengths together."""

    step: int
    first_step: int
    reason: str
    changed: bool
    predicted: float | None
    shares: list[float]
    """per rank, rows of a full batch, the mean over the lengths"""
    achieved: float | None = None


@dataclass
class Record:
    """A run."""

    folder: Path
    config: dict[str, Any]
    starts: list[Start] = field(default_factory=list)
    steps: list[tuple[int, float]] = field(default_factory=list)
    """step and loss of its batch, NaN where that was no number"""
    rates: list[tuple[int, float]] = field(default_factory=list)
    """step and learning rate, where it was recorded"""
    epochs: list[Epoch] = field(default_factory=list)
    times: list[Times] = field(default_factory=list)
    decisions: list[Decision] = field(default_factory=list)
    profile: list[list[tuple[int, int, float]]] = field(default_factory=list)
    """per rank: padded length, rows, seconds"""
    works: list[dict[str, Any]] = field(default_factory=list)
    nonfinite: list[dict[str, Any]] = field(default_factory=list)
    resyncs: list[dict[str, Any]] = field(default_factory=list)
    end: dict[str, Any] = field(default_factory=dict)
    last_step: int = 0
    unreadable: int = 0
    """lines that are no events, a last one that is cut off not counted"""
    torn: bool = False
    """the last line is cut off"""
    weights: float = 0.0
    """batches of the lengths that the last decision's shares are a mean over, while the file is read"""

    @property
    def ranks(self) -> int:
        """Of the last process group; 0 where nothing says it."""
        if self.starts:
            return self.starts[-1].ranks
        return len(self.epochs[-1].compute or self.epochs[-1].shares) if self.epochs else 0

    def option(self, name: str) -> Any:
        """A value of config.json, those of the model included; None where there is none."""
        model = self.config.get("model")
        return self.config.get(name, model.get(name) if isinstance(model, dict) else None)


def read_record(folder: Path) -> Record:
    """Read a RUN folder.

    Raises:
        UsageError: it lacks config.json or metrics.jsonl, or they cannot be read.
    """
    if not folder.is_dir():
        what = "is a file; name the folder that it is in" if folder.exists() else "no such folder"
        raise UsageError(f"{folder}: {what}; give a RUN that engine.train wrote (its --out)")
    texts = {}
    for name in ("config.json", "metrics.jsonl"):
        try:
            texts[name] = (folder / name).read_bytes()
        except OSError as error:
            raise UsageError(
                f"{folder / name}: {error.strerror}; give a RUN that engine.train wrote (its --out)"
            ) from None
    try:
        config = json.loads(texts["config.json"])
    except (ValueError, RecursionError):
        config = None
    if not isinstance(config, dict):
        raise UsageError(f"{folder / 'config.json'}: not a JSON object; give a RUN that engine.train wrote (its --out)")
    return record_of(folder, config, texts["metrics.jsonl"])


def record_of(folder: Path, config: dict[str, Any], metrics: bytes) -> Record:
    """From the content of the files to a record; lines that are no events are counted and left out."""
    record = Record(folder, config)
    *lines, rest = metrics.split(b"\n")
    record.torn = bool(rest.strip())
    for line in lines:
        try:
            event = json.loads(line)
            kind = event["event"]
            step = _whole(event.get("step"))
            if kind in _TAKE:
                _TAKE[kind](record, event, step)
            record.last_step = max(record.last_step, step)
        except (ValueError, TypeError, KeyError, RecursionError, OverflowError):
            record.unreadable += bool(line.strip())
    return record


def number(value: Any) -> float | None:
    """A finite number, or None."""
    plain = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if plain and math.isfinite(value) else None


def numbers(value: Any) -> list[float]:
    """A list of finite numbers; empty where one of them is none."""
    found = [number(item) for item in value] if isinstance(value, list) else []
    return [] if None in found else [item for item in found if item is not None]


def _whole(value: Any) -> int:
    found = number(value)
    return 0 if found is None else int(found)


def _words(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _take_start(record: Record, event: dict[str, Any], step: int) -> None:
    hosts = [_words(host) for host in event.get("hosts") or []]
    versions = {str(name): str(version) for name, version in _words(event.get("versions")).items()}
    ranks = _whole(event.get("ranks")) or len(hosts) or len(numbers(event.get("shares")))
    record.starts.append(
        Start(
            step,
            ranks,
            hosts if len(hosts) == ranks else [],
            versions,
            str(event.get("dataset_digest") or ""),
            _words(event.get("dataset")),
            number(event.get("parameters")),
            number(event.get("time")),
        )
    )
    record.end = {}


def _take_step(record: Record, event: dict[str, Any], step: int) -> None:
    loss = number(event.get("loss"))
    record.steps.append((step, math.nan if loss is None else loss))
    rate = number(event.get("learning_rate"))
    if rate is not None:
        record.rates.append((step, rate))


def _take_epoch(record: Record, event: dict[str, Any], step: int) -> None:
    record.epochs.append(
        Epoch(
            _whole(event["epoch"]),
            record.epochs[-1].step + 1 if record.epochs else 1,
            step,
            number(event.get("train_loss")),
            _words(event.get("validation")),
            number(event.get("seconds")),
            number(event.get("rows")),
            number(event.get("rows_per_second")),
            numbers(event.get("shares")),
            numbers(event.get("compute_seconds")),
            numbers(event.get("input_seconds")),
            numbers(event.get("wait_seconds")),
            [int(rank) for rank in numbers(event.get("starved_ranks"))],
            _whole(event.get("skipped_steps")),
            _whole(event.get("nonfinite_steps")),
            number(event.get("time")),
        )
    )


def _take_times(record: Record, event: dict[str, Any], step: int) -> None:
    tables = {
        name: [numbers(row) for row in event[name]]
        for name in ("rows", "compute_seconds", "input_seconds", "wait_seconds")
    }
    ends = [int(end) for end in numbers(event["ends"])]
    ranks = len(tables["rows"])
    if not ends or not ranks or any(
        len(table) != ranks or any(len(row) != len(ends) for row in table) for table in tables.values()
    ):  # fmt: skip
        raise ValueError("a timeline that does not fit together")
    record.times.append(
        Times(
            _whole(event["epoch"]),
            _whole(event["first_step"]),
            number(event["seconds"]) or 0.0,
            number(event["longest_compute_seconds"]) or 0.0,
            number(event["longest_ready_seconds"]) or 0.0,
            number(event["least_wait_seconds"]) or 0.0,
            numbers(event.get("last_steps")),
            ends,
            tables["rows"],
            tables["compute_seconds"],
            tables["input_seconds"],
            tables["wait_seconds"],
        )
    )


def _take_shares(record: Record, event: dict[str, Any], step: int) -> None:
    """Events of one decision, a length each, come one after the other."""
    shares, bucket = numbers(event["shares"]), event.get("bucket")
    first, reason = _whole(event.get("first_step")) or step + 1, str(event.get("reason") or "")
    changed = event.get("changed") is not False
    weight = _weight(record, bucket)
    last = record.decisions[-1] if record.decisions else None
    same = last is not None and (last.step, last.first_step, last.reason, last.changed) == (
        step, first, reason, changed
    )  # fmt: skip
    if same and last is not None and bucket is not None and len(last.shares) == len(shares):
        weights = record.weights + weight
        last.shares = [
            (old * record.weights + new * weight) / weights for old, new in zip(last.shares, shares, strict=True)
        ]
        record.weights = weights
        return
    record.decisions.append(Decision(step, first, reason, changed, number(event.get("predicted_gain")), list(shares)))
    record.weights = weight


def _weight(record: Record, bucket: Any) -> float:
    """Batches of a length in an epoch; 1 where that is not known."""
    dataset = record.starts[-1].dataset if record.starts else {}
    batch = number(record.config.get("batch_size"))
    for bound, rows in zip(numbers(dataset.get("bounds")), numbers(dataset.get("bucket_rows")), strict=False):
        if bound == bucket and batch:
            return max(1.0, math.ceil(rows / batch))
    return 1.0


def _take_gain(record: Record, event: dict[str, Any], step: int) -> None:
    decided = _whole(event["decided_at"])
    for decision in reversed(record.decisions):
        if decision.step == decided and decision.changed:
            decision.achieved = number(event.get("achieved_gain"))
            return
        if decision.step < decided:
            return


def _take_profile(record: Record, event: dict[str, Any], step: int) -> None:
    points = [[(int(bound), int(rows), float(seconds)) for bound, rows, seconds in rank] for rank in event["points"]]
    record.profile = [[point for point in rank if point[1] > 0 and point[2] > 0] for rank in points]


def _take_end(record: Record, event: dict[str, Any], step: int) -> None:
    record.end = event


_TAKE: dict[str, Callable[[Record, dict[str, Any], int], None]] = {
    "start": _take_start,
    "step": _take_step,
    "epoch": _take_epoch,
    "timeline": _take_times,
    "shares": _take_shares,
    "gain": _take_gain,
    "profile": _take_profile,
    "work": lambda record, event, step: record.works.append(event),
    "nonfinite": lambda record, event, step: record.nonfinite.append(event),
    "resync": lambda record, event, step: record.resyncs.append(event),
    "end": _take_end,
}
