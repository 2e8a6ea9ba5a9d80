"""What trainings on mixes of machines take, as a table and in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from engine.cost_inputs import Question
from engine.cost_mixes import Outcome, Point, cheapest_within, fastest_within, front

WORTH_SAYING = 0.01
"""part of the time that balancing must save to be called a saving"""
MOST_NAMED = 4
"""mixes that a sentence names"""


def as_json(
    question: Question, outcomes: Sequence[Outcome], budget: float | None, deadline: float | None
) -> dict[str, Any]:
    """All figures.

    Args:
        question: what was asked.
        outcomes: of every mix.
        budget: dollars, if there is one.
        deadline: hours, if there is one.
    """
    marks = zip(outcomes, fronts(outcomes)["even"], fronts(outcomes)["balanced"], strict=True)
    cheapest, fastest = extremes(outcomes)
    found: dict[str, Any] = {
        "notes": list(question.notes),
        "mixes": [
            {
                "machines": dict(one.mix),
                "gpus": one.ranks,
                "dollars_per_hour": one.dollars_per_hour,
                "exchange_seconds": one.exchange_seconds,
                "even": asdict(one.even) | {"on_front": on_even},
                "balanced": asdict(one.balanced) | {"on_front": on_balanced},
                "saved": one.saved,
                "measured_even_seconds": measured_seconds(question, one),
            }
            for one, on_even, on_balanced in marks
        ],
        "cheapest": dict(cheapest.mix),
        "fastest": dict(fastest.mix),
    }
    if budget is not None:
        within = fastest_within(outcomes, budget)
        found |= {"budget_dollars": budget, "fastest_within_budget": within and dict(within.mix)}
    if deadline is not None:
        within = cheapest_within(outcomes, deadline * 3600)
        found |= {"deadline_hours": deadline, "cheapest_within_deadline": within and dict(within.mix)}
    return found


def describe(
    question: Question, outcomes: Sequence[Outcome], show: int, budget: float | None, deadline: float | None
) -> str:
    """The table for people, and what it says in words.

    Args:
        question: what was asked.
        outcomes: of every mix.
        show: rows of the table at most, first of all those on the front.
        budget: dollars, if there is one.
        deadline: hours, if there is one.
    """
    on = fronts(outcomes)
    chosen = _chosen(outcomes, on["balanced"], show)
    width = max(len(outcomes[at].name) for at in chosen) + 2
    measured = any(measured_seconds(question, outcomes[at]) for at in chosen)
    lines = [
        *question.notes,
        "",
        f"{'':{width}}{'':4}{'':8}{'even split':>21}{'balanced shares':>23}",
        f"{'':{width}}{'GPUs':>4}{'$/h':>8}{'time':>12}{'$':>9}{'time':>14}{'$':>9}{'saved':>8}  front"
        + (f"{'measured':>14}" if measured else ""),
    ]
    for at in chosen:
        one = outcomes[at]
        marks = ("*" if on["balanced"][at] else " ") + (" e" if on["even"][at] else "  ")
        seconds = measured_seconds(question, one)
        row = (
            f"{one.name:{width}}{one.ranks:4}{one.dollars_per_hour:8.2f}{clock(one.even.seconds):>12}"
            f"{money(one.even.dollars):>9}{clock(one.balanced.seconds):>14}{money(one.balanced.dollars):>9}"
            f"{one.saved if one.saved > 1e-4 else 0:8.1%}  {marks:5}"
            + (f"{clock(seconds):>14}" if seconds else "")
        )  # fmt: skip
        lines.append(row.rstrip())
    if len(chosen) < len(outcomes):
        shown = sum(on["balanced"][at] for at in chosen)
        lines.append(
            f"({len(chosen):,} of {len(outcomes):,} mixes, {shown:,} of the {sum(on['balanced']):,} on the front; "
            f"--show {len(outcomes)} shows all)"
        )
    lines += [
        "* on the front with balanced shares: no other mix is both quicker and cheaper; e: on that of even splits"
        + ("; measured: with an even split" if measured else ""),
        "",
        *_words(outcomes, budget, deadline),
    ]
    return "\n".join(lines)


def fronts(outcomes: Sequence[Outcome]) -> dict[str, list[bool]]:
    """Which mixes stand on the front, by who chooses the shares."""
    return {name: front([getattr(one, name) for one in outcomes]) for name in ("even", "balanced")}


def extremes(outcomes: Sequence[Outcome]) -> tuple[Outcome, Outcome]:
    """The cheapest mix and the fastest one, with balanced shares."""
    cheapest, fastest = cheapest_within(outcomes, float("inf")), fastest_within(outcomes, float("inf"))
    assert cheapest is not None
    assert fastest is not None
    return cheapest, fastest


def measured_seconds(question: Question, outcome: Outcome) -> float | None:
    """What an even split really took, where that was measured."""
    reference = question.catalogue.reference
    if not question.is_reference or reference is None:
        return None
    runs = {tuple(sorted(run.mix.items())): run.even for run in reference.measured}
    alone = question.catalogue.machines[next(iter(outcome.mix))].seconds
    return alone if sum(outcome.mix.values()) == 1 else runs.get(tuple(sorted(outcome.mix.items())))


def money(dollars: float) -> str:
    """Dollars and cents; of less than a dollar more digits."""
    return f"{dollars:,.2f}" if dollars >= 1 or not dollars else f"{dollars:.4f}"


def clock(seconds: float) -> str:
    """Such as 3 h 05 min, 12 min 30 s, 4.2 s; days above 100 hours."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    minutes = round(seconds / 60)
    if minutes < 6000:
        return f"{minutes // 60} h {minutes % 60:02} min"
    hours = round(seconds / 3600)
    return f"{hours // 24:,} d {hours % 24:02} h"


def _chosen(outcomes: Sequence[Outcome], on_front: Sequence[bool], show: int) -> list[int]:
    """The front, as much of it as fits, and then the cheapest of the rest; in order of balanced cost."""
    order = sorted(range(len(outcomes)), key=lambda at: (outcomes[at].balanced.dollars, outcomes[at].balanced.seconds))
    best, rest = ([at for at in order if on_front[at] == wanted] for wanted in (True, False))
    if len(best) > show:  # from its one end to the other
        return [best[number * (len(best) - 1) // max(1, show - 1)] for number in range(show)]
    chosen = {*best, *rest[: show - len(best)]}
    return [at for at in order if at in chosen]


def _words(outcomes: Sequence[Outcome], budget: float | None, deadline: float | None) -> list[str]:
    cheapest, fastest = extremes(outcomes)
    lines = [f"Cheapest: {_said(cheapest)}.", f"Fastest: {_said(fastest)}."]
    if budget is not None:
        within = fastest_within(outcomes, budget)
        lines.append(
            f"Fastest for at most ${money(budget)}: {_said(within)}."
            if within
            else f"Nothing costs at most ${money(budget)}: the cheapest is ${money(cheapest.balanced.dollars)}."
        )
    if deadline is not None:
        within = cheapest_within(outcomes, deadline * 3600)
        lines.append(
            f"Cheapest within {deadline:g} h: {_said(within)}."
            if within
            else f"Nothing is done within {deadline:g} h: the fastest takes {clock(fastest.balanced.seconds)}."
        )
    return lines + _savings(outcomes)


def _savings(outcomes: Sequence[Outcome]) -> list[str]:
    """What balancing brings, and whether it makes any mix worth having."""
    uneven = [one for one in outcomes if one.saved > WORTH_SAYING]
    if not uneven:
        return ["Balancing saves nothing here: all GPUs of a mix are about alike."]
    least, most = min(one.saved for one in uneven), max(one.saved for one in uneven)
    best = max(uneven, key=lambda one: one.saved)
    part = f"{most:.0%}" if f"{least:.0%}" == f"{most:.0%}" else f"{least:.0%} to {most:.0%}"
    lines = [
        f"Balancing saves {part} of time and money on {_count(len(uneven))} of unlike GPUs; most on {best.name}: "
        f"{_change(best.even, best.balanced)}."
    ]
    on = fronts(outcomes)
    marks = sorted(zip(outcomes, on["even"], on["balanced"], strict=True), key=lambda mark: mark[0].balanced.dollars)
    gained = [one.name for one, before, after in marks if after and not before]
    if gained:
        more = f" and {len(gained) - MOST_NAMED} more" if len(gained) > MOST_NAMED else ""
        lines.append(f"On the front only with balanced shares: {'; '.join(gained[:MOST_NAMED])}{more}.")
    elif not any(after and one.saved > WORTH_SAYING for one, _, after in marks):
        lines.append("Yet none of them is on the front: like GPUs are the better buy, where they are to be had.")
    useful = {name for one, before, after in marks if before or after for name in one.mix}
    idle = sorted({name for one in outcomes for name in one.mix} - useful)
    if idle:
        lines.append(
            f"No mix with {' or '.join(idle)} is on a front: to each of them another is as quick and as cheap."
        )
    return lines


def _count(mixes: int) -> str:
    return "the one mix" if mixes == 1 else f"the {mixes:,} mixes"


def _change(before: Point, after: Point) -> str:
    old, new = (f"{clock(point.seconds)} and ${money(point.dollars)}" for point in (before, after))
    return f"{old} become {new}"


def _said(outcome: Outcome) -> str:
    return f"{outcome.name}, {clock(outcome.balanced.seconds)}, ${money(outcome.balanced.dollars)}"
