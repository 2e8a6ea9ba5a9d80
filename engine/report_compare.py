"""Several runs side by side: a table, curves in one chart, what differs in their configurations."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from statistics import fmean
from typing import Any

from engine.report_charts import Figure, exact_figure_of, figure_of, overlay, parts_figure
from engine.report_record import number
from engine.report_run import RunView
from engine.report_summary import best_epoch
from engine.report_svg import Axis, Series
from engine.report_tables import Table, plain, told
from engine.report_time import Parts
from engine.report_words import NOT_RECORDED, count, duration, figure, percent, rate, several

MOST_CURVES = 8
"""runs that can be told apart in one chart"""
ALIKE = 1.03
"""speeds that differ by less are told as equal: a machine's own vary as much"""


@dataclass(frozen=True)
class Row:
    """A measure; `best` are the numbers of the runs in which it is best, none where that has no meaning."""

    name: str
    texts: Sequence[str]
    best: Sequence[int]


@dataclass(frozen=True)
class Comparison:
    """What stands before the runs themselves."""

    words: list[str]
    rows: list[Row]
    curves: list[Figure]
    time: Figure | None
    options: Table | None


def comparison(runs: Sequence[RunView]) -> Comparison:
    """All that is shown of several runs together."""
    return Comparison(_words(runs), _rows(runs), _curves(runs), _time(runs), _options(runs))


def _speed(run: RunView) -> float | None:
    return sum(run.times.whole.rows) / run.times.whole.seconds if run.times else None


def _seconds(run: RunView) -> float | None:
    known = [epoch.seconds for epoch in run.record.epochs if epoch.seconds is not None]
    return sum(known) if known else None


def _best(run: RunView, name: str) -> float | None:
    best = best_epoch(run.record)
    return best.figure(name) if best else None


def _lost(run: RunView, name: str) -> float | None:
    return getattr(run.times.parts, name) / run.times.whole.seconds if run.times else None


def _words(runs: Sequence[RunView]) -> list[str]:
    found = []
    if not _same_data(runs):
        found.append("Their datasets differ, so that losses, scores and speeds cannot be compared.")
        return found
    scores = {run.name: value for run in runs if (value := _best(run, "macro_f1")) is not None}
    if len(scores) > 1 and _seeds_apart(runs):
        low, high, mean = min(scores.values()), max(scores.values()), fmean(scores.values())
        spread = f"macro-F1 from {figure(low)} to {figure(high)}, mean {figure(mean)}"
        found.append(f"They differ in their seed alone: {spread}.")
    elif len(scores) > 1:
        first, second, *_ = sorted(scores, key=lambda name: -scores[name])
        text = f"The best model is that of {first}: macro-F1 {figure(scores[first])}"
        text += f"; next is {second} with {figure(scores[second])}"
        rows = min(_best(run, "rows") or math.inf for run in runs if run.name in (first, second))
        # The standard error of a part that is right, which macro-F1 is close to; another seed makes about as much.
        chance = math.sqrt(scores[first] * (1 - scores[first]) / rows)
        small = scores[first] - scores[second] <= chance
        found.append(f"{text}, which may be chance: train with more seeds to tell." if small else f"{text}.")
    speeds = {run.name: value for run in runs if (value := _speed(run)) is not None}
    if len(speeds) > 1:
        first, *_, last = sorted(speeds, key=lambda name: -speeds[name])
        if speeds[first] < speeds[last] * ALIKE:
            found.append(f"All were about as fast: {rate(speeds[last])} to {rate(speeds[first])} reviews/s.")
        else:
            text = f"The fastest is {first}: {rate(speeds[first])} reviews/s"
            found.append(f"{text}, {speeds[first] / speeds[last]:.2f} times as fast as {last}.")
    return found


def _seeds_apart(runs: Sequence[RunView]) -> bool:
    """Whether nothing but their seed makes the runs differ."""
    configs = [{name: plain(value) for name, value in _flat(run).items()} for run in runs]
    alike = all({**one, "seed": 0} == {**configs[0], "seed": 0} for one in configs)
    return alike and len({str(one.get("seed")) for one in configs}) == len(runs)


def _flat(run: RunView) -> dict[str, Any]:
    """A run's options, those of the model among them; not where it was written."""
    config, model = run.record.config, run.record.config.get("model")
    flat = {**config, **(model if isinstance(model, dict) else {})}
    return {name: value for name, value in flat.items() if name not in ("model", "out")}


def _same_data(runs: Sequence[RunView]) -> bool:
    return len({run.record.starts[-1].digest for run in runs if run.record.starts}) < 2


Measure = tuple[str, Callable[[RunView], float | None], Callable[[float | None], str], int]
MEASURES: list[Measure] = [
    ("Epochs done", lambda run: len(run.record.epochs), count, 0),
    ("Steps", lambda run: run.record.last_step, count, 0),
    ("Ranks", lambda run: run.record.ranks, count, 0),
    ("Reviews in a batch", lambda run: number(run.record.option("batch_size")), count, 0),
    ("Accuracy, best epoch", lambda run: _best(run, "accuracy"), lambda value: figure(value, 4), 1),
    ("Macro-F1, best epoch", lambda run: _best(run, "macro_f1"), lambda value: figure(value, 4), 1),
    ("Validation loss, best epoch", lambda run: _best(run, "loss"), lambda value: figure(value, 4), -1),
    ("Accuracy, most frequent class", lambda run: _best(run, "null_accuracy"), lambda value: figure(value, 4), 0),
    ("Reviews/s", _speed, rate, 1),
    ("Time of all steps", _seconds, duration, 0),
    ("Efficiency E", lambda run: run.times.efficiency.whole if run.times else None, lambda value: figure(value, 2), 1),
    ("Batch-size factor", lambda run: run.times.efficiency.batch_size if run.times else None,
     lambda value: figure(value, 2), 1),
    ("Balance", lambda run: run.times.efficiency.balance if run.times else None, lambda value: figure(value, 2), 1),
    ("Exposure", lambda run: run.times.efficiency.exposure if run.times else None, lambda value: figure(value, 2), 1),
    ("Waited for the slowest rank", lambda run: _lost(run, "imbalance"), percent, -1),
    ("Waited for input", lambda run: _lost(run, "input"), percent, -1),
    ("Exchange of gradients", lambda run: _lost(run, "exchange"), percent, -1),
]  # fmt: skip
"""name, value, how it is told, and whether more is better (1), less (-1) or neither"""

OF_THE_DATA = ("Accuracy, best epoch", "Macro-F1, best epoch", "Validation loss, best epoch", "Reviews/s")
"""measures in which none is best where the datasets differ"""


def _rows(runs: Sequence[RunView]) -> list[Row]:
    rows = [Row("State", [run.status[1] for run in runs], [])]
    same = _same_data(runs)
    for name, of, show, better in MEASURES:
        values = [of(run) for run in runs]
        if all(value is None for value in values):
            continue
        texts = ["not measured" if text == NOT_RECORDED else text for text in map(show, values)]
        known = [value for value in values if value is not None]
        best = list[int]()
        if better and (same or name not in OF_THE_DATA) and len(known) > 1 and max(known) > min(known):
            top = max(known) if better > 0 else min(known)
            best = [place for place, text in enumerate(texts) if text == show(top)]
        rows.append(Row(name, texts, best))
    return rows


def _curves(runs: Sequence[RunView]) -> list[Figure]:
    found = []
    shown = runs[:MOST_CURVES]
    note = f"The first {MOST_CURVES} runs." if len(runs) > MOST_CURVES else ""
    for key, title, name in (
        ("cmp-loss", "Validation loss by epoch", "loss"),
        ("cmp-f1", "Macro-F1 by epoch", "macro_f1"),
    ):
        series = []
        for place, run in enumerate(shown):
            points = [(float(e.number), value) for e in run.record.epochs if (value := e.figure(name)) is not None]
            if points:
                series.append(Series(run.name, points, f"c{place}", dots=True))
        if series:
            x = Axis("epoch", count, whole=True)
            y = Axis(name.replace("macro_f1", "macro-F1"), figure_of, tell=exact_figure_of)
            found.append(overlay(key, title, series, x, y, f"{title}, of {several(len(series), 'run')}.", note))
    series = []
    for place, run in enumerate(shown):
        seconds = list(accumulate(epoch.seconds or 0.0 for epoch in run.record.epochs))
        pairs = zip(seconds, run.record.epochs, strict=True)
        points = [(at, value) for at, epoch in pairs if (value := epoch.figure("loss")) is not None and at]
        if points:
            series.append(Series(run.name, points, f"c{place}", dots=True))
    if series:
        x = Axis("time of steps", duration, least=0.0, clock=True)
        y = Axis("validation loss", figure_of, tell=exact_figure_of)
        title = "Validation loss by time"
        found.append(overlay("cmp-time", title, series, x, y, f"{title} spent in steps, at each epoch's end.", note))
    return found


def _time(runs: Sequence[RunView]) -> Figure | None:
    rows = []
    for run in runs:
        if run.times is not None:
            parts, reviews = run.times.parts, sum(run.times.whole.rows) / 1e6
            scaled = {name: getattr(parts, name) / reviews for name in Parts.__dataclass_fields__} if reviews else {}
            if scaled:
                rows.append((run.name, Parts(**scaled)))
    if not rows:
        return None
    return parts_figure(rows, "cmp", "Where the time went, per million reviews", "Shorter is faster.")


def _options(runs: Sequence[RunView]) -> Table | None:
    everything = [_flat(run) for run in runs]
    names = list(dict.fromkeys(name for flat in everything for name in flat))
    rows = []
    for name in names:
        values = [flat.get(name, NOT_RECORDED) for flat in everything]
        if any(plain(value) != plain(values[0]) for value in values):
            rows.append([f"--{name.replace('_', '-')}", *map(told, values)])
    heads = ["Option", *(run.name for run in runs)]
    return Table("What differs in the configurations", heads, rows, words=tuple(range(len(heads)))) if rows else None
