"""What the page says of one run: its figures, tables and sentences, ready to be shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import MISSING, dataclass, fields
from typing import Any

from engine import report_summary as summary
from engine.class_names import CLASS_NAMES
from engine.config import ModelConfig, TrainConfig, flag
from engine.report_charts import (
    Figure,
    efficiency_figure,
    rank_figures,
    ranks_figure,
    shares_figure,
    time_figure,
    training_figures,
)
from engine.report_record import Decision, Record, numbers
from engine.report_time import NOTABLE, RunTimes, times_of
from engine.report_words import count, duration, figure, percent, rate, several, signed_percent

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


@dataclass(frozen=True)
class RunView:
    """One run on the page."""

    key: str
    name: str
    record: Record
    times: RunTimes | None
    status: tuple[str, str]
    tiles: list[summary.Tile]
    words: list[tuple[str, str]]
    """what a sentence is about, and the sentence"""
    training: list[Figure]
    epochs: Table | None
    confusion: Confusion | None
    shares: Figure | None
    decisions: Table | None
    ranks_bar: Figure | None
    ranks: Table | None
    over_time: list[Figure]
    time: Figure | None
    efficiency_chart: Figure | None
    efficiency: Table | None
    efficiency_notes: list[str]
    slowest: list[str]
    input: list[str]
    faults: list[str]
    changed: Table | None
    options: Table
    places: Table | None
    versions: Table | None


def view_of(record: Record, name: str, key: str) -> RunView:
    """All that is shown of a run.

    Args:
        name: what the page calls it.
        key: a word that no other run on the page has.
    """
    times = times_of(record)
    ranks = summary.rank_names(record, times.whole.ranks if times else record.ranks)
    words = [
        ("What", summary.what(record)),
        ("How good", summary.how_good(record)),
        ("How efficient", summary.how_efficient(times)),
        ("What slowed it", summary.what_slowed(record, times)),
        ("Balancing", summary.balancing(record)),
        ("Faults", " ".join(summary.faults(record)[:3]) or "None: no step was left out, nothing was restarted."),
    ]
    changed, options = _options(record)
    several_ranks = times is not None and times.whole.ranks > 1
    return RunView(
        key,
        name,
        record,
        times,
        summary.status_of(record),
        summary.tiles_of(record, times),
        [(about, text) for about, text in words if text],
        training_figures(record, key),
        _epochs(record),
        _confusion(record),
        shares_figure(record, ranks, key),
        _decisions(record),
        ranks_figure(times, ranks, key) if times else None,
        _ranks(times, ranks) if times else None,
        rank_figures(record, times, ranks, key) if times else [],
        time_figure(times, key) if times else None,
        efficiency_figure(times, key) if times else None,
        _efficiency(times) if times else None,
        _efficiency_notes(record, times) if times else [],
        _slowest(record, times) if times and several_ranks else [],
        _input(record, times, ranks),
        summary.faults(record),
        changed,
        options,
        _places(record),
        _versions(record),
    )


def _epochs(record: Record) -> Table | None:
    if not record.epochs:
        return None
    best = summary.best_epoch(record)
    shown = record.epochs
    note = ""
    if len(shown) > MOST_EPOCHS:
        shown = [e for e in shown[:5] + shown[-MOST_EPOCHS + 6 :]]
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


def _confusion(record: Record) -> Confusion | None:
    best = summary.best_epoch(record)
    counts = [numbers(row) for row in best.validation.get("confusion") or []] if best is not None else []
    size = len(counts)
    if best is None or not size or any(len(row) != size for row in counts):
        return None
    names = CLASS_NAMES.get(size, tuple(f"class {number}" for number in range(size)))
    rows = []
    for number, row in enumerate(counts):
        true, hits = sum(row), row[number]
        answered = sum(other[number] for other in counts)
        cells = [(count(value), percent(value / true if true else 0.0, 1), value / true if true else 0.0) for value in row]
        f1 = 2 * hits / (true + answered) if true + answered else 0.0
        rows.append((names[number], cells, percent(hits / true if true else 0.0, 1), figure(f1)))
    totals = [sum(row[number] for row in counts) for number in range(size)]
    precision = [percent(counts[n][n] / total if total else 0.0, 1) for n, total in enumerate(totals)]
    return Confusion(best.number, names, rows, precision)


def _decisions(record: Record) -> Table | None:
    """Those with a promise, and what was kept."""
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
        note = (
            f"Of {len(told):,} decisions these are the last {len(last)} and those that promised most; metrics.jsonl has all."
        )
    few = max(len(one.shares) for one in shown) <= 8
    rows = [
        [
            count(one.first_step),
            one.reason,
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


def _ranks(times: RunTimes, names: Sequence[str]) -> Table:
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
    note = "Rows: part of all rows. Compute, input, wait: part of the time. Last in: part of the steps in which the rank was the last to be ready."
    return Table("What each rank did", heads, rows, note, strong)


def _efficiency(times: RunTimes) -> Table:
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
    note = "Mean/max: of compute, every rank weighing the same, as the run's own lines tell it."
    return Table("Efficiency and its factors", heads, rows, note, strong=len(rows) - 1)


def _efficiency_notes(record: Record, times: RunTimes) -> list[str]:
    notes = [
        "E is the job's speed over the sum of what its ranks can do alone at their best batch size: batch size (what the "
        "ranks' batches in the job cost beside those best ones) × balance (mean over longest compute, a rank weighing by "
        "its speed) × exposure (longest compute over the step's time)."
    ]
    if times.efficiency.batch_size is None:
        why = "the run had one rank" if times.whole.ranks == 1 else "there was none: balancing was off, or the run is of an older version"
        notes.append(f"The batch-size factor was not measured: it comes from the start-up profile, and {why}.")
    else:
        notes.append(
            "The batch-size factor, and each rank's best speed, come from the start-up profile of some seconds; a "
            "benchmark on a quiet machine would measure them better."
        )
    if not times.whole.exact:
        notes.append(
            "Who computed longest at each step was not recorded, so balance is by sums over epochs and looks better than it was."
        )
    return notes


def _slowest(record: Record, times: RunTimes) -> list[str]:
    worst, parts, seconds = times.slowest, times.parts, times.whole.seconds
    assert worst is not None, "several ranks have a slowest one"
    who = summary.in_words(record, worst.rank)
    if worst.last is not None:
        text = f"{who.capitalize()} was the last to be ready in {percent(worst.last)} of the steps (by chance: {percent(1 / times.whole.ranks)})."
    else:
        text = f"{who.capitalize()} needed most time for input and compute together."
    found = [text]
    if worst.why == "compute":
        found.append("The reason is its compute: it is slower than its share allows. --balance auto would give it fewer rows."
                     if record.option("balance") == "off" else
                     "The reason is its compute, beyond what the balancer foresaw: its speed changed, or its timings scatter.")  # fmt: skip
    elif worst.why == "input":
        found.append(
            "The reason is its input, which no shares can mend: put the dataset on a faster disk (--stage-dir), or give the rank more cores."
        )
    else:
        found.append("It does not stand out: the time lost to uneven ranks is small.")
    if parts.exchange > max(parts.imbalance, parts.input, NOTABLE * seconds):
        found.append(
            f"More time than to any rank went into the exchange of gradients ({percent(parts.exchange / seconds)}): "
            "a larger --batch-size, --exchange rows or a faster network make it less."
        )
    return found


def _input(record: Record, times: RunTimes | None, names: Sequence[str]) -> list[str]:
    found = []
    start = record.starts[-1] if record.starts else None
    data, stage = record.option("data"), record.option("stage_dir")
    if data:
        text = f"Read from {data}"
        text += f", copied once per node to {stage}" if stage else ", where it lies"
        dataset = start.dataset if start else {}
        bounds, rows = numbers(dataset.get("bounds")), dataset.get("rows")
        words = numbers([dataset.get("words")])
        if bounds and isinstance(rows, dict):
            text += f": {several(numbers([rows.get('train')])[0] if numbers([rows.get('train')]) else 0, 'review')} for training"
            text += f", in {several(len(bounds), 'length')} up to {count(bounds[-1])} words"
            text += f", {count(words[0])} words known" if words else ""
        found.append(text + ".")
    if times is not None:
        span = times.whole
        most = max(range(span.ranks), key=lambda rank: span.input[rank])
        mean = sum(span.input) / span.ranks / span.seconds
        text = f"Ranks waited {percent(mean, 1)} of their time for input"
        if span.ranks > 1:
            text += f", {names[most]} most of all: {percent(span.input[most] / span.seconds, 1)}"
        held = times.parts.input / span.seconds
        found.append(f"{text}. The steps became {percent(held, 1)} longer by it.")
        if not any(epoch.starved for epoch in record.epochs):
            found.append("In no epoch did a rank wait for input for more than a tenth of the time.")
    return found


def _options(record: Record) -> tuple[Table | None, Table]:
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
    unknown = [[flag(name), told(value), "an option of another version"] for name, value in mine.items() if name not in known]
    rows = [[flag(name), told(value)] for name, value in mine.items()]
    rows += [[flag(name), "not recorded"] for name in known if name not in mine]
    heads = ["Option", "Value", "Default"]
    changed = Table("What differs from the defaults", heads, other + unknown, words=(0, 1, 2)) if other + unknown else None
    return changed, Table("All options", heads[:2], rows, words=(0, 1))


def plain(value: Any) -> Any:
    """As JSON has it."""
    return list(value) if isinstance(value, tuple) else value


def told(value: Any) -> str:
    """An option's value for people."""
    if isinstance(value, list | tuple):
        return ",".join(map(str, value)) or "none"
    return "none" if value in ("", None) else str(value)


def _places(record: Record) -> Table | None:
    start = record.starts[-1] if record.starts else None
    if start is None or not start.hosts:
        return None
    rows = [
        [str(rank), *(str(host.get(name) or "not recorded") for name in ("host", "device", "processor", "threads"))]
        for rank, host in enumerate(start.hosts)
    ]
    return Table("Where the ranks ran", ["Rank", "Host", "Device", "Processor", "Threads"], rows, words=(0, 1, 2, 3))


def _versions(record: Record) -> Table | None:
    start = record.starts[-1] if record.starts else None
    rows = [[name, version] for name, version in start.versions.items()] if start else []
    if start is not None and start.digest:
        rows.append(["dataset (digest)", start.digest])
    weights = record.end.get("weights_digest")
    if weights:
        rows.append(["trained weights (digest)", str(weights)])
    return Table("Versions and digests", ["What", "Version"], rows, words=(0, 1)) if rows else None
