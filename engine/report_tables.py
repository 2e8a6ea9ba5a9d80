"""The tables about one run."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, fields
from typing import Any

from engine.class_names import CLASS_NAMES
from engine.config import ModelConfig, TrainConfig, flag
from engine.report_record import Decision, Record, numbers
from engine.report_summary import best_epoch
from engine.report_time import RunTimes
from engine.report_words import THIN, count, duration, figure, percent, rate, several, signed_percent

MOST_DECISIONS = 100
"""in the table; of more those that promised most are shown, and the last ones"""
MOST_EPOCHS = 60
"""in the table; of more the first, the best and the last ones are shown"""


@dataclass(frozen=True)
class Table:
    """Heads and rows of texts; the first column names the row."""

    caption: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    strong: int | None = None
    """number of the row to be emphasised"""
    words: Sequence[int] = (0,)
    """columns that hold words, to the left; numbers stand to the right"""


@dataclass(frozen=True)
class Confusion:
    """Counts, true class by answered class, with their part of the true class."""

    epoch: int
    names: Sequence[str]
    rows: Sequence[tuple[str, Sequence[tuple[str, str, float]], str, str]]
    """class, cells (count, part in words, part), recall, F1"""
    precision: Sequence[str]


def epochs_table(record: Record) -> Table | None:
    """Loss and figures by epoch; None where no epoch is done."""
    if not record.epochs:
        return None
    best = best_epoch(record)
    shown = record.epochs
    note = ""
    if len(shown) > MOST_EPOCHS:
        shown = shown[:5] + shown[-MOST_EPOCHS + 6 :]
        if best is not None and best not in shown:
            shown.insert(5, best)
        note = f"{len(record.epochs) - len(shown):,} epochs between are left out."
    rows = [
        [
            f"{epoch.number}{' (best)' if epoch is best else ''}",
            count(epoch.step),
            figure(epoch.train_loss, 4),
            figure(epoch.figure("loss"), 4),
            figure(epoch.figure("accuracy"), 4),
            figure(epoch.figure("macro_f1"), 4),
            duration(epoch.seconds),
            rate(epoch.rows_per_second),
        ]
        for epoch in shown
    ]
    heads = ["Epoch", "Step", "Training loss", "Validation loss", "Accuracy", "Macro-F1", "Time", "Reviews/s"]
    strong = next((number for number, epoch in enumerate(shown) if epoch is best), None)
    return Table("Loss and figures by epoch", heads, rows, note, strong)


def confusion_of(record: Record) -> Confusion | None:
    """The confusion matrix of the best epoch; None where none is recorded."""
    best = best_epoch(record)
    counts = [numbers(row) for row in best.validation.get("confusion") or []] if best is not None else []
    size = len(counts)
    if best is None or not size or any(len(row) != size for row in counts):
        return None
    names = CLASS_NAMES.get(size, tuple(f"class {number}" for number in range(size)))
    rows = []
    for number, row in enumerate(counts):
        true, hits = sum(row), row[number]
        answered = sum(other[number] for other in counts)
        cells = [
            (count(value), percent(value / true if true else 0.0, 1), value / true if true else 0.0) for value in row
        ]
        f1 = 2 * hits / (true + answered) if true + answered else 0.0
        rows.append((names[number], cells, percent(hits / true if true else 0.0, 1), figure(f1)))
    totals = [sum(row[number] for row in counts) for number in range(size)]
    precision = [percent(counts[n][n] / total if total else 0.0, 1) for n, total in enumerate(totals)]
    return Confusion(best.number, names, rows, precision)


def decisions_table(record: Record) -> Table | None:
    """Changes of shares and what was kept instead, at most MOST_DECISIONS of them; None where nothing was decided."""
    told = [one for one in record.decisions if one.step or not one.changed or one.predicted]
    if not told:
        return None
    shown: list[Decision] = told
    note = ""
    if len(told) > MOST_DECISIONS:
        last = told[-MOST_DECISIONS // 5 :]
        first = [one for one in told[: -len(last)] if one.changed] or told[: -len(last)]
        most = sorted(first, key=lambda one: -(one.predicted or 0.0))[: MOST_DECISIONS - len(last)]
        shown = sorted([*most, *last], key=lambda one: (one.first_step, one.step))
        note = f"Of {len(told):,} decisions: the last {len(last)} and those that promised most; metrics.jsonl has all."
    few = max(len(one.shares) for one in shown) <= 8
    rows = [
        [
            count(one.first_step) + ("" if one.first_step <= record.last_step else ", not reached"),
            re.sub(r"(?<=\d)%", f"{THIN}%", one.reason),
            *([", ".join(f"{share:.0f}" for share in one.shares)] if few else []),
            signed_percent(one.predicted),
            signed_percent(one.achieved) if one.achieved is not None else "not judged" if one.changed else "kept",
        ]
        for one in shown
    ]
    heads = ["From step", "Reason", *(["Rows per rank"] if few else []), "Predicted", "Achieved"]
    changes = sum(one.changed for one in told)
    caption = f"Decisions of the balancer: {several(changes, 'change')}, {several(len(told) - changes, 'time')} kept"
    return Table(caption, heads, rows, note, words=(1, 2) if few else (1,))


def ranks_table(times: RunTimes, names: Sequence[str]) -> Table:
    """What each rank did with the time; the slowest is emphasised where it stands out."""
    span = times.whole
    total = sum(span.rows) or 1.0
    rows = []
    for rank, name in enumerate(names):
        compute, read, wait = span.compute[rank], span.input[rank], span.wait[rank]
        rows.append(
            [
                name,
                percent(span.rows[rank] / total, 1),
                rate(span.rows[rank] / compute) if compute and span.rows[rank] else "no rows",
                percent(compute / span.seconds, 1),
                percent(read / span.seconds, 1),
                percent(wait / span.seconds, 1),
                percent(span.last_steps[rank] / span.steps) if span.exact else "not recorded",
            ]
        )
    heads = ["Rank", "Rows", "Reviews/s of compute", "Compute", "Input", "Wait", "Last in"]
    strong = times.slowest.rank if times.slowest and times.slowest.why else None
    note = (
        "Rows: part of all rows. Compute, input, wait: part of the time. Last in: part of the steps in which the rank "
        "was the last to be ready."
    )
    return Table("What each rank did", heads, rows, note, strong)


def efficiency_table(times: RunTimes) -> Table:
    """E and its factors, of each epoch and of all."""
    heads = ["Epoch", "Batch size", "Balance", "Exposure", "E", "Mean/max"]
    items = [(str(epoch.number), one) for epoch, _, one in times.spans][-MOST_EPOCHS:]
    items.append(("all", times.efficiency))
    rows = [
        [
            name,
            figure(one.batch_size, 2) if one.batch_size is not None else "not measured",
            figure(one.balance, 2),
            figure(one.exposure, 2),
            figure(one.whole, 2) if one.whole is not None else f"{figure(one.known, 2)} × batch size",
            figure(one.mean_over_max, 2),
        ]
        for name, one in items
    ]
    note = "Mean/max: of compute, step by step, every rank weighing the same, as the run's own lines tell it."
    return Table("Efficiency and its factors", heads, rows, note, strong=len(rows) - 1)


def options_tables(record: Record) -> tuple[Table | None, Table]:
    """What differs from this version's defaults (None where nothing does), and all options."""
    known: dict[str, Any] = {}
    for owner in (TrainConfig, ModelConfig):
        for item in fields(owner):
            if item.name != "model":
                known[item.name] = item.default
    model = record.config.get("model")
    mine = {**record.config, **(model if isinstance(model, dict) else {})}
    mine.pop("model", None)
    other = [
        [flag(name), told(value), told(known[name]) if name in known and known[name] is not MISSING else "none"]
        for name, value in mine.items()
        if name in known and (known[name] is MISSING or plain(value) != plain(known[name]))
    ]
    unknown = [
        [flag(name), told(value), "an option of another version"] for name, value in mine.items() if name not in known
    ]
    rows = [[flag(name), told(value)] for name, value in mine.items()]
    rows += [[flag(name), "not recorded"] for name in known if name not in mine]
    heads = ["Option", "Value", "Default"]
    changed = (
        Table("What differs from the defaults", heads, other + unknown, words=(0, 1, 2)) if other + unknown else None
    )
    return changed, Table("All options", heads[:2], rows, words=(0, 1))


def plain(value: Any) -> Any:
    """As JSON has it."""
    return list(value) if isinstance(value, tuple) else value


def told(value: Any) -> str:
    """An option's value for people."""
    if isinstance(value, list | tuple):
        return ",".join(map(str, value)) or "none"
    return "none" if value in ("", None) else str(value)


def places_table(record: Record) -> Table | None:
    """Host and device of each rank; None where they are not recorded."""
    start = record.starts[-1] if record.starts else None
    if start is None or not start.hosts:
        return None
    rows = [
        [str(rank), *(str(host.get(name) or "not recorded") for name in ("host", "device", "processor", "threads"))]
        for rank, host in enumerate(start.hosts)
    ]
    return Table("Where the ranks ran", ["Rank", "Host", "Device", "Processor", "Threads"], rows, words=(0, 1, 2, 3))


def versions_table(record: Record) -> Table | None:
    """Versions, and digests of dataset and weights; None where none are recorded."""
    start = record.starts[-1] if record.starts else None
    rows = [[name, version] for name, version in start.versions.items()] if start else []
    if start is not None and start.digest:
        rows.append(["dataset (digest)", start.digest])
    weights = record.end.get("weights_digest")
    if weights:
        rows.append(["trained weights (digest)", str(weights)])
    return Table("Versions and digests", ["What", "Version"], rows, words=(0, 1)) if rows else None
