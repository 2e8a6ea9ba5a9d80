"""The charts of one run, from its record and its times."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from markupsafe import Markup

from engine.report_record import Decision, Epoch, Record
from engine.report_svg import (
    Axis,
    Bar,
    Frame,
    Mark,
    Series,
    bar_chart,
    heat_map,
    line_chart,
    thinned,
)
from engine.report_time import Efficiency, Parts, RunTimes, parts_of
from engine.report_words import count, duration, figure, percent, rate, signed_percent

WIDE, HALF, NARROW = 900.0, 440.0, 350.0
"""pixels: the whole page, half of it, a phone"""
MOST_LINES = 8
"""ranks that can be told apart as lines; more are a heat map"""
PARTS = {
    "compute": ("c0", "compute"),
    "imbalance": ("c1", "waiting for the rank that computes longest"),
    "input": ("c2", "waiting for input"),
    "exchange": ("c3", "exchange of gradients"),
    "rest": ("muted", "optimizer and the rest"),
}
RANK_PARTS = (("c0", "compute"), ("c2", "input"), ("c3", "wait: exchange, and for other ranks"), ("muted", "the rest"))


@dataclass(frozen=True)
class Figure:
    """A chart with what is written around it."""

    title: str
    note: str
    wide: Markup
    narrow: Markup | None = None
    """for phones; None where the other one is narrow enough"""
    legend: Sequence[tuple[str, str]] = field(default=())
    """class and name"""
    scale: tuple[str, str] = ("", "")
    """of a heat map: what its first and its last colour mean"""
    lines: bool = False
    """the legend shows lines, not areas"""


def legend_of(series: Sequence[Series]) -> list[tuple[str, str]]:
    """Class and name of each line."""
    return [(f"{one.style}{' faint' if one.faint else ''}", one.name) for one in series]


def training_figures(record: Record, key: str) -> list[Figure]:
    """Loss by step, quality by epoch, and the learning rate where it is recorded."""
    found = [_loss(record, key)] if record.steps or record.epochs else []
    if any(epoch.figure("accuracy") is not None for epoch in record.epochs):
        found.append(_quality(record.epochs, key))
    if len({rate for _, rate in record.rates}) > 1:
        series = [Series("learning rate", thinned(record.rates, 400), "c0")]
        rates = [rate for _, rate in record.rates]
        ends = f"First {rates[0]:.3g}, highest {max(rates):.3g}, last {rates[-1]:.3g}."
        frame = Frame(f"{key}-rate", "Learning rate", "The learning rate over the steps of training.", HALF, 240)
        y = Axis("learning rate", lambda value: f"{value:.3g}", least=0.0)
        found.append(Figure("Learning rate", ends, line_chart(frame, series, Axis("step", count), y)))
    return found


def _loss(record: Record, key: str) -> Figure:
    series = []
    if record.steps:
        series.append(Series("one batch", thinned(record.steps, 300), "muted", faint=True))
    train = [(epoch.step, epoch.train_loss) for epoch in record.epochs]
    validation = [(epoch.step, epoch.figure("loss")) for epoch in record.epochs]
    for name, points, style in (("training, mean of the epoch", train, "c0"), ("validation", validation, "c1")):
        known = [(float(step), value) for step, value in points if value is not None]
        if known:
            series.append(Series(name, known, style, dots=True))
    frame = Frame(
        f"{key}-loss",
        "Loss",
        f"Loss over the steps of training: {_from_to(train)} in training, {_from_to(validation)} on the validation "
        "split, first to last epoch.",
        HALF,
        260,
        borders=[epoch.step for epoch in record.epochs[:-1]] if len(record.epochs) <= 40 else [],
    )
    chart = line_chart(frame, series, Axis("step", count, least=0.0), Axis("loss", figure_of, tell=exact_figure_of))
    note = "Upright lines: ends of epochs." if frame.borders else ""
    return Figure("Loss", note, chart, legend=legend_of(series), lines=True)


def _from_to(points: Sequence[tuple[int, float | None]]) -> str:
    known = [value for _, value in points if value is not None]
    return f"from {known[0]:.3f} to {known[-1]:.3f}" if known else "not known"


def _quality(epochs: Sequence[Epoch], key: str) -> Figure:
    series = []
    for name, label, style in (
        ("accuracy", "accuracy", "c0"),
        ("macro_f1", "macro-F1", "c1"),
        ("null_accuracy", "accuracy, most frequent class", "c0 dashed"),
        ("null_macro_f1", "its macro-F1", "c1 dashed"),
    ):
        values = [(float(epoch.number), epoch.figure(name)) for epoch in epochs]
        points = [(at, value) for at, value in values if value is not None]
        if points:
            series.append(Series(label, points, style, dots="dashed" not in style))
    frame = Frame(
        f"{key}-quality", "Accuracy and macro-F1", "By epoch, on the validation split; dashed: most frequent class.",
        HALF, 260,
    )  # fmt: skip
    y = Axis("part that is right", figure_of, most=1.0, tell=exact_figure_of)
    chart = line_chart(frame, series, Axis("epoch", count, whole=True), y)
    note = "Dashed: always answering the most frequent class."
    return Figure("Accuracy and macro-F1", note, chart, legend=legend_of(series), lines=True)


def both(draw: Callable[[float, str], Markup]) -> tuple[Markup, Markup]:
    """A drawing for the whole page and one for a phone; `draw` takes a width and what its key ends with."""
    return draw(WIDE, "w"), draw(NARROW, "n")


def _legend_of(parts: Sequence[Parts]) -> list[tuple[str, str]]:
    return [PARTS[name] for name in PARTS if any(getattr(one, name) > 0 for one in parts)]


def time_figure(times: RunTimes, key: str) -> Figure:
    """Where the steps' time went, epoch by epoch."""
    rows = [(f"epoch {epoch.number}", parts_of(span, efficiency)) for epoch, span, efficiency in times.spans]
    rows = rows if len(rows) <= 12 else rows[:6] + rows[-6:]
    return parts_figure(rows, key, "Where the time of the steps went", "Seconds of all steps of an epoch together.")


def parts_figure(rows: Sequence[tuple[str, Parts]], key: str, title: str, note: str) -> Figure:
    """A bar per row, cut by what the time went into."""
    bars = []
    for name, parts in rows:
        cut = [(style, what, max(0.0, getattr(parts, part))) for part, (style, what) in PARTS.items()]
        bars.append(Bar(name, cut, duration(sum(value for _, _, value in cut))))
    told = "; ".join(f"{bar.name}: " + ", ".join(f"{what} {duration(value)}" for _, what, value in bar.parts if value)
                     for bar in bars[:3])  # fmt: skip

    def draw(width: float, end: str) -> Markup:
        return bar_chart(Frame(f"{key}-parts-{end}", title, told, width, 0), bars, duration)

    return Figure(title, note, *both(draw), legend=_legend_of([parts for _, parts in rows]))


def efficiency_figure(times: RunTimes, key: str) -> Figure | None:
    """E and its factors by epoch; None for a single epoch."""
    if len(times.spans) < 2:
        return None
    kinds: list[tuple[str, str, Callable[[Efficiency], float | None]]] = [
        ("c1", "balance", lambda one: one.balance),
        ("c3", "exposure", lambda one: one.exposure),
        ("c2", "batch size", lambda one: one.batch_size),
        ("c0 strong", "E" if times.efficiency.batch_size is not None else "balance x exposure", lambda one: one.known),
    ]
    series = []
    for style, name, of in kinds:
        values = [(float(epoch.number), of(efficiency)) for epoch, _, efficiency in times.spans]
        points = [(at, value) for at, value in values if value is not None]
        if points:
            series.append(Series(name, points, style, dots=True))
    frame = Frame(f"{key}-e", "Efficiency", "Efficiency and its factors by epoch; 1 is the best.", HALF, 260)
    top = max(1.0, max(value for one in series for _, value in one.points))
    y = Axis("part of what is possible", lambda value: f"{value:.2f}", least=0.0, most=top)
    chart = line_chart(frame, series, Axis("epoch", count, whole=True), y)
    return Figure("Efficiency by epoch", "", chart, legend=legend_of(series), lines=True)


def ranks_figure(times: RunTimes, names: Sequence[str], key: str) -> Figure:
    """What each rank did with the time."""
    span, bars = times.whole, []
    for rank, name in enumerate(names):
        compute, read, wait = span.compute[rank], span.input[rank], span.wait[rank]
        values = (compute, read, wait, max(0.0, span.seconds - compute - read - wait))
        cut = [(style, what, value) for (style, what), value in zip(RANK_PARTS, values, strict=True)]
        bars.append(Bar(name, cut, percent(compute / span.seconds)))
    low = min(range(span.ranks), key=lambda rank: span.compute[rank])
    high = max(range(span.ranks), key=lambda rank: span.compute[rank])
    told = (
        f"Compute per rank: least {duration(span.compute[low])} on {names[low]}, most {duration(span.compute[high])} "
        f"on {names[high]}, of {duration(span.seconds)}."
    )

    def draw(width: float, end: str) -> Markup:
        thick = 16.0 if span.ranks <= 16 else 9.0
        return bar_chart(Frame(f"{key}-ranks-{end}", "Time per rank", told, width, 0), bars, duration, thick)

    legend = [item for item, part in zip(RANK_PARTS, zip(*(bar.parts for bar in bars), strict=True), strict=True)
              if any(value > 0 for _, _, value in part)]  # fmt: skip
    return Figure("Time per rank", "At the end of a bar: the part of the time in compute.", *both(draw), legend=legend)


def shares_figure(record: Record, names: Sequence[str], key: str) -> Figure | None:
    """Shares of the batch over the steps, with the balancer's changes marked; None where none are recorded."""
    ranks = len(names)
    changes = changes_of(record.decisions, ranks)
    last = max(record.last_step, 1)
    if not changes or ranks < 2:
        return None
    marks = [Mark(one.first_step, decision_tip(one)) for one in record.decisions if one.changed and one.step]
    note = "Triangles: the balancer changed the shares; point at one for the reason." if marks else ""
    title, x = "Share of each batch per rank", Axis("step", count, least=1.0, most=float(last))
    told = "Part of each batch that a rank takes, over the steps. " + "; ".join(
        f"{name} from {percent(changes[0].shares[rank] / sum(changes[0].shares))} "
        f"to {percent(changes[-1].shares[rank] / sum(changes[-1].shares))}"
        for rank, name in enumerate(names[:MOST_LINES])
    )
    borders = [epoch.step for epoch in record.epochs if epoch.step < last] if len(record.epochs) <= 40 else []
    if ranks > MOST_LINES:
        edges, cells = _cells_of(changes, ranks, last)

        def heat(width: float, end: str) -> Markup:
            frame = Frame(f"{key}-shares-{end}", title, told, width, 0, marks)
            return heat_map(frame, names, edges, cells, x, (0.0, 2.0))

        return Figure(title, note, *both(heat), scale=("no rows", "twice an even share or more"))
    series = []
    for rank, name in enumerate(names):
        points = [(float(max(1, one.first_step)), one.shares[rank] / sum(one.shares)) for one in changes]
        series.append(Series(name, [*points, (float(last), points[-1][1])], f"c{rank}", held=True))

    def lines(width: float, end: str) -> Markup:
        frame = Frame(f"{key}-shares-{end}", title, told, width, 270, marks, borders)
        return line_chart(frame, series, x, Axis("part of the batch", percent, least=0.0))

    return Figure(title, note, *both(lines), legend=legend_of(series), lines=True)


def changes_of(decisions: Sequence[Decision], ranks: int) -> list[Decision]:
    """The shares that were in force, one after the other; what was announced for a later step and never came is left
    out, and so is what was decided on another number of ranks."""
    found: list[Decision] = []
    for one in decisions:
        if not one.changed or len(one.shares) != ranks or not sum(one.shares):
            continue
        while found and found[-1].first_step >= one.first_step:
            found.pop()
        found.append(one)
    return found


def _cells_of(changes: Sequence[Decision], ranks: int, last: int) -> tuple[list[float], list[list[float]]]:
    """Share over the even share, per rank, in at most 120 stretches of steps."""
    parts = min(120, last)
    edges = [1 + last * part / parts for part in range(parts + 1)]
    rows: list[list[float]] = [[] for _ in range(ranks)]
    place = 0
    for start in edges[:-1]:
        while place + 1 < len(changes) and changes[place + 1].first_step <= start:
            place += 1
        total = sum(changes[place].shares)
        for rank, share in enumerate(changes[place].shares):
            rows[rank].append(share * ranks / total)
    return edges, rows


def decision_tip(one: Decision) -> str:
    """A decision in a line."""
    gain = "" if one.predicted is None else f"; predicted {signed_percent(one.predicted)}"
    gain += "" if one.achieved is None else f", achieved {signed_percent(one.achieved)}"
    return f"step {one.first_step:,}: {one.reason}{gain}"


def rank_figures(record: Record, times: RunTimes, names: Sequence[str], key: str) -> list[Figure]:
    """Milliseconds of a step in compute, input and waiting, per rank over the steps."""
    found = []
    for name, note in (
        ("compute", "From the batch in hand to the end of backward."),
        ("input", "Waiting for the next batch."),
        ("wait", "Exchange of gradients, and waiting for other ranks."),
    ):
        edges, rows = _milliseconds(record, times, name)
        if not edges or not any(value > 0 for row in rows for value in row):
            continue
        title = f"{name.capitalize()} per step"
        most = max(value for row in rows for value in row if math.isfinite(value))
        told = f"Milliseconds of a step per rank, over the steps: at most {rate(most)}."
        x = Axis("step", count, least=edges[0], most=edges[-1])
        frame = Frame(f"{key}-{name}", title, told, HALF, 240)
        if len(names) > MOST_LINES:
            chart = heat_map(frame, names, edges, rows, x, (0.0, most))
            found.append(Figure(title, note, chart, scale=(f"0{'ms':>4}", f"{rate(most)} ms")))
            continue
        middles = [(before + after) / 2 for before, after in pairwise(edges)]
        series = [
            Series(rank, list(zip(middles, row, strict=True)), f"c{number}", dots=len(middles) < 8)
            for number, (rank, row) in enumerate(zip(names, rows, strict=True))
        ]
        chart = line_chart(frame, series, x, Axis("ms", rate, least=0.0))
        found.append(Figure(title, note, chart, legend=legend_of(series), lines=True))
    return found


def _milliseconds(record: Record, times: RunTimes, name: str) -> tuple[list[float], list[list[float]]]:
    """Edges in steps and, per rank, milliseconds of a step between them: by the timeline, or by epoch."""
    ranks = times.whole.ranks
    edges: list[float] = []
    rows: list[list[float]] = [[] for _ in range(ranks)]

    def add(first: int, last: int, values: Sequence[float]) -> None:
        if edges and edges[-1] < first - 1:
            edges.append(first - 1)  # steps of which nothing is known
            for row in rows:
                row.append(math.nan)
        if not edges:
            edges.append(first - 1)
        edges.append(last)
        for row, value in zip(rows, values, strict=True):
            row.append(value * 1000 / max(1, last - first + 1))

    for epoch, _, _ in times.spans:
        known = [one for one in record.times if one.epoch == epoch.number and len(one.rows) == ranks]
        for one in known:
            starts = [one.first_step, *(end + 1 for end in one.ends[:-1])]
            for part, (first, last) in enumerate(zip(starts, one.ends, strict=True)):
                add(first, last, [row[part] for row in getattr(one, name)])
        if not known:
            add(epoch.first_step, epoch.step, getattr(epoch, name))
    most = 150
    if len(edges) - 1 > most:
        edges, rows = _coarser(edges, rows, -(-(len(edges) - 1) // most))
    return edges, rows


def _coarser(edges: list[float], rows: list[list[float]], by: int) -> tuple[list[float], list[list[float]]]:
    """So many neighbours in one, each weighing by its steps."""
    wide = [after - before for before, after in pairwise(edges)]
    groups = [range(start, min(start + by, len(wide))) for start in range(0, len(wide), by)]
    coarse = [edges[0], *(edges[group[-1] + 1] for group in groups)]
    joined = []
    for row in rows:
        means = []
        for group in groups:
            known = [part for part in group if math.isfinite(row[part])]
            steps = sum(wide[part] for part in known)
            means.append(sum(row[part] * wide[part] for part in known) / steps if steps else math.nan)
        joined.append(means)
    return coarse, joined


def overlay(key: str, title: str, series: Sequence[Series], x: Axis, y: Axis, told: str, note: str = "") -> Figure:
    """Curves of several runs in one chart."""
    chart = line_chart(Frame(key, title, told, HALF, 270), series, x, y)
    return Figure(title, note, chart, legend=legend_of(series), lines=True)


def figure_of(value: float) -> str:
    """A tick of a loss or a part."""
    return figure(value, 2)


def exact_figure_of(value: float) -> str:
    """A loss or a part that is pointed at, as in the tables."""
    return figure(value, 4)
