"""What the page says of one run: its figures, tables and sentences, ready to be shown."""

from __future__ import annotations

from dataclasses import dataclass

from engine import report_summary as summary
from engine.report_charts import (
    Figure,
    efficiency_figure,
    rank_figures,
    ranks_figure,
    shares_figure,
    time_figure,
    training_figures,
)
from engine.report_record import Record, number, numbers
from engine.report_tables import (
    Confusion,
    Table,
    confusion_of,
    decisions_table,
    efficiency_table,
    epochs_table,
    options_tables,
    places_table,
    ranks_table,
    versions_table,
)
from engine.report_time import NOTABLE, RunTimes, slow_epochs, times_of
from engine.report_words import count, percent, ranges, several


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
    changed, options = options_tables(record)
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
        epochs_table(record),
        confusion_of(record),
        shares_figure(record, ranks, key),
        decisions_table(record),
        ranks_figure(times, ranks, key) if times else None,
        ranks_table(times, ranks) if times else None,
        rank_figures(record, times, ranks, key) if times else [],
        time_figure(times, key) if times else None,
        efficiency_figure(times, key) if times else None,
        efficiency_table(times) if times else None,
        _efficiency_notes(record, times) if times else [],
        _slowest(record, times) if times and several_ranks else [],
        _input(record, times, ranks),
        summary.faults(record),
        changed,
        options,
        places_table(record),
        versions_table(record),
    )


def _efficiency_notes(record: Record, times: RunTimes) -> list[str]:
    notes = [
        "E is the job's speed over the sum of what its ranks can do alone at their best batch size. It is a product: "
        "batch size (what the ranks' batches in the job cost beside those best ones) × balance (mean over longest "
        "compute, a rank weighing by its speed) × exposure (longest compute over the step's time)."
    ]
    if times.efficiency.batch_size is None:
        why = (
            "the run had one rank"
            if times.whole.ranks == 1
            else "there was none: balancing was off, or the run is of an older version"
        )
        notes.append(f"The batch-size factor was not measured: it comes from the start-up profile, and {why}.")
    else:
        notes.append(
            "The batch-size factor, and each rank's best speed, come from the start-up profile of some seconds; a "
            "benchmark on a quiet machine would measure them better."
        )
    if not times.whole.exact:
        notes.append(
            "Who computed longest at each step was not recorded: balance is by sums over epochs, and looks better than "
            "it was."
        )
    return notes


def _slowest(record: Record, times: RunTimes) -> list[str]:
    worst, parts, seconds = times.slowest, times.parts, times.whole.seconds
    assert worst is not None, "several ranks have a slowest one"
    who = summary.in_words(record, worst.rank)
    if worst.last is not None:
        chance = percent(1 / times.whole.ranks)
        text = f"R{who[1:]} was the last to be ready in {percent(worst.last)} of the steps (by chance: {chance})."
    else:
        text = f"R{who[1:]} needed most time for input and compute together."
    found = [text]
    if worst.why == "compute" and record.option("balance") == "off":
        found.append(
            "The reason is its compute: it is slower than its share allows; --balance auto gives it fewer rows."
        )
    elif worst.why == "compute":
        found.append("The reason is its compute, beyond what the balancer foresaw: its speed or its timings vary.")
    elif worst.why == "input":
        found.append(
            "The reason is its input, which no shares can mend: put the dataset on a faster disk (--stage-dir), or "
            "give the rank more cores."
        )
    else:
        found.append("It does not stand out: no rank alone is behind the time that ranks waited for each other.")
    groups: dict[tuple[int, str], list[int]] = {}
    for at, slow in slow_epochs(times):
        groups.setdefault((slow.rank, slow.why), []).append(at)
    for (rank, why), epochs in groups.items():
        who, which = summary.in_words(record, rank), "epoch" if len(epochs) == 1 else "epochs"
        found.append(f"In {which} {ranges(epochs)} it was {who} that stood out, by its {why}.")
    if parts.exchange > max(parts.imbalance, parts.input, NOTABLE * seconds):
        found.append(
            f"More time than to any rank went into the exchange of gradients ({percent(parts.exchange / seconds)}): "
            "a larger --batch-size, --exchange rows or a faster network make it less."
        )
    return found


def _input(record: Record, times: RunTimes | None, names: list[str]) -> list[str]:
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
            text += f": {several(number(rows.get('train')) or 0, 'review')} for training"
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
