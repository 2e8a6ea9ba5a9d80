"""Drawing: lines, stacked bars and heat maps as SVG. Pure; colours and sizes of text are templates/report.css's.

Every drawing has a title and a description for those who hear it, and tells its values when pointed at.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from markupsafe import Markup, escape

LETTER = 7.0
"""width of a letter of the text, about, in pixels"""
WIDE_LETTER = 8.5
"""the same for names, which may be short and of wide letters"""
LINE = 16.0
LEVELS = 9
"""colours of a heat map: classes h0 to h8"""
MOST_TIPS = 150
"""marks that tell their text when pointed at; of more only the first do"""

CLOCK_STEPS = (15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10_800, 21_600, 43_200, 86_400)
"""seconds between ticks of a time that is long enough"""

Format = Callable[[float], str]


@dataclass(frozen=True)
class Axis:
    """One axis; the range is that of the data where it is not given."""

    label: str
    show: Format
    least: float | None = None
    most: float | None = None
    whole: bool = False
    """ticks at whole numbers only"""
    clock: bool = False
    """seconds: ticks at whole minutes or hours where they are that far apart"""
    tell: Format | None = None
    """for a value that is pointed at, and for ticks that `show` does not tell apart; None: as they are shown"""


@dataclass(frozen=True)
class Series:
    """A line."""

    name: str
    points: Sequence[tuple[float, float]]
    """x and y in rising x; NaN breaks the line"""
    style: str
    """class that colours it: c0 to c7 or muted"""
    dots: bool = False
    held: bool = False
    """a value holds until the next one: a staircase"""
    faint: bool = False


@dataclass(frozen=True)
class Mark:
    """Something that happened at an x."""

    x: float
    text: str


@dataclass(frozen=True)
class Frame:
    """Where things are drawn."""

    key: str
    """unlike that of any other drawing on the page"""
    title: str
    description: str
    width: float
    height: float
    marks: Sequence[Mark] = field(default=())
    borders: Sequence[float] = field(default=())
    """x of faint upright lines: where epochs end"""


def svg(frame: Frame, body: Sequence[str]) -> Markup:
    """The drawing around its parts, which are markup."""
    names = f"{frame.key}-t {frame.key}-d"
    return Markup(
        f'<svg viewBox="0 0 {_n(frame.width)} {_n(frame.height)}" role="img" aria-labelledby="{names}">'
        f'<title id="{frame.key}-t">{escape(frame.title)}</title>'
        f'<desc id="{frame.key}-d">{escape(frame.description)}</desc>{"".join(body)}</svg>'
    )


def line_chart(frame: Frame, series: Sequence[Series], x: Axis, y: Axis) -> Markup:
    """Lines over x."""
    xs = [point[0] for one in series for point in one.points]
    ys = [point[1] for one in series for point in one.points if math.isfinite(point[1])]
    x_low, x_high = _range(xs, x, 0.0)
    y_low, y_high = _range(ys, y, 0.06)
    room = 10.0 if frame.marks else 0.0
    top, bottom = 12.0 + LINE + room, frame.height - 2.4 * LINE
    y_ticks = ticks(y_low, y_high, max(2, int((bottom - top) / 38)), y)
    show = y.show if len({y.show(tick) for tick in y_ticks}) == len(y_ticks) else y.tell or y.show
    left = 8 + LETTER * max(len(show(tick)) for tick in y_ticks)
    right = frame.width - 12
    fit_x, fit_y = _fit(x_low, x_high, left, right), _fit(y_low, y_high, bottom, top)
    body = [_text(0, 12, y.label, "axis")]
    for tick in y_ticks:
        body.append(f'<path class="grid" d="M{_n(left)} {_n(fit_y(tick))}H{_n(right)}"/>')
        body.append(_text(left - 5, fit_y(tick) + 4, show(tick), "tick end"))
    body += [f'<path class="border" d="M{_n(fit_x(at))} {_n(top)}V{_n(bottom)}"/>' for at in frame.borders]
    body += _x_axis(x, x_low, x_high, fit_x, bottom, frame)
    body += _marks(frame, fit_x, top)
    for one in series:
        body += _line(one, fit_x, fit_y, bottom, x, y)
    return svg(frame, body)


def _x_axis(
    x: Axis, low: float, high: float, fit: Format | Callable[[float], float], y: float, frame: Frame
) -> list[str]:
    left, right = float(fit(low)), float(fit(high))
    body = [f'<path class="frame" d="M{_n(left)} {_n(y)}H{_n(right)}"/>']
    widest = max(len(x.show(low)), len(x.show(high))) + 3
    for tick in ticks(low, high, max(1, int((right - left) / (LETTER * widest))), x):
        at = float(fit(tick))
        end = " end" if at > right - LETTER * 2 and at + LETTER * len(x.show(tick)) / 2 > frame.width else " middle"
        body.append(_text(frame.width if end == " end" else at, y + LINE, x.show(tick), f"tick{end}"))
    body.append(_text(right, y + 2 * LINE, x.label, "axis end"))
    return body


def _marks(frame: Frame, fit: Callable[[float], float], top: float) -> list[str]:
    """Small triangles above the drawing, one a pixel at most."""
    body, places = [], set[int]()
    for mark in frame.marks:
        at = fit(mark.x)
        if round(at) in places:
            continue
        places.add(round(at))
        tip = f"<title>{escape(mark.text)}</title>" if len(places) <= MOST_TIPS else ""
        body.append(f'<path class="mark" d="M{_n(at - 4)} {_n(top - 9)}h8l-4 7z">{tip}</path>')
    return body


def _line(
    one: Series, fit_x: Callable[[float], float], fit_y: Callable[[float], float], bottom: float, x: Axis, y: Axis
) -> list[str]:
    kind = f"line {one.style}{' faint' if one.faint else ''}"
    body = []
    for finite, group in groupby(one.points, lambda point: math.isfinite(point[1])):
        if not finite:
            continue
        places = [(fit_x(px), fit_y(py)) for px, py in group]
        path = f"M{_n(places[0][0])} {_n(places[0][1])}"
        if len(places) == 1 and not one.dots:
            path += "h3"
        for px, py in places[1:]:
            path += f"H{_n(px)}V{_n(py)}" if one.held else f"L{_n(px)} {_n(py)}"
        body.append(f'<path class="{kind}" d="{path}"><title>{escape(one.name)}</title></path>')
    if one.dots:
        shown = [point for point in one.points if math.isfinite(point[1])]
        for px, py in shown if len(shown) <= MOST_TIPS else ():
            tip = f"{one.name}: {(y.tell or y.show)(py)}, {x.label} {x.show(px)}"
            body.append(
                f'<circle class="dot {one.style}" cx="{_n(fit_x(px))}" cy="{_n(fit_y(py))}" r="3">'
                f"<title>{escape(tip)}</title></circle>"
            )
    return body


@dataclass(frozen=True)
class Bar:
    """A row of a bar chart: parts side by side."""

    name: str
    parts: Sequence[tuple[str, str, float]]
    """class that colours it, what it is, how long"""
    text: str = ""
    """at its end"""


def bar_chart(frame: Frame, bars: Sequence[Bar], show: Format, thick: float = 16.0) -> Markup:
    """Stacked bars, one below the other; the drawing is as high as they need."""
    most = max((sum(value for _, _, value in bar.parts) for bar in bars), default=0.0) or 1.0
    letters, left = _names_room([bar.name for bar in bars], frame.width)
    right = frame.width - LETTER * max((len(bar.text) for bar in bars), default=0) - 8
    body, at = [], 4.0
    for bar in bars:
        body.append(_name(left - 8, at + thick / 2 + 4, bar.name, letters))
        x = left
        for style, what, value in bar.parts:
            long = max(0.0, value) / most * (right - left)
            if long > 0.05:
                body.append(
                    f'<rect class="{style}" x="{_n(x)}" y="{_n(at)}" width="{_n(long)}" height="{_n(thick)}">'
                    f"<title>{escape(f'{bar.name}: {what} {show(value)}')}</title></rect>"
                )
            x += long
        body.append(_text(x + 6, at + thick / 2 + 4, bar.text, "tick"))
        at += thick + (7 if thick > 10 else 3)
    return svg(Frame(frame.key, frame.title, frame.description, frame.width, at), body)


def _names_room(names: Sequence[str], width: float) -> tuple[int, float]:
    """Letters of the names to the left of a drawing, a third of its width at most, and where they end."""
    letters = min(max(map(len, names), default=0), int(width / WIDE_LETTER / 3))
    return letters, WIDE_LETTER * letters + 10


def _name(x: float, y: float, name: str, letters: int) -> str:
    """A name that ends at x; one that is too long is cut, and told in full when pointed at."""
    if len(name) <= letters:
        return _text(x, y, name, "tick end")
    return _text(x, y, name[: letters - 1] + "\N{HORIZONTAL ELLIPSIS}", "tick end", name)


def heat_map(
    frame: Frame,
    names: Sequence[str],
    edges: Sequence[float],
    values: Sequence[Sequence[float]],
    x: Axis,
    bounds: tuple[float, float],
) -> Markup:
    """A row per name, a cell per stretch of x, coloured by its value.

    Args:
        edges: x where cells begin and end: one more than a row has values.
        values: per row; NaN leaves a cell empty.
        bounds: values of the first and of the last colour.
    """
    room = 10.0 if frame.marks else 0.0
    letters, left = _names_room(names, frame.width)
    right, top = frame.width - 12, 6.0 + room
    tall = max(5.0, min(18.0, 320.0 / len(names)))
    bottom = top + tall * len(names)
    fit = _fit(edges[0], edges[-1], left, right)
    paths = [""] * LEVELS
    for row, cells in enumerate(values):
        levels = [_level(value, bounds) for value in cells]
        start = 0
        for level, group in groupby(levels):
            end = start + len(list(group))
            if level is not None:
                x0, x1 = fit(edges[start]), fit(edges[end])
                paths[level] += f"M{_n(x0)} {_n(top + row * tall)}H{_n(x1)}v{_n(tall)}H{_n(x0)}z"
            start = end
    body = [f'<path class="h{level}" d="{path}"/>' for level, path in enumerate(paths) if path]
    every = max(1, math.ceil(LINE / tall))
    for row in range(0, len(names), every):
        body.append(_name(left - 6, top + (row + 0.5) * tall + 4, names[row], letters))
    placed = Frame(frame.key, frame.title, frame.description, frame.width, bottom + 2.4 * LINE, frame.marks)
    body += _marks(placed, fit, top)
    body += _x_axis(x, edges[0], edges[-1], fit, bottom, placed)
    return svg(placed, body)


def _level(value: float, bounds: tuple[float, float]) -> int | None:
    if not math.isfinite(value):
        return None
    low, high = bounds
    part = (value - low) / (high - low) if high > low else 0.5
    return min(LEVELS - 1, max(0, int(part * LEVELS)))


def ticks(low: float, high: float, most: int, axis: Axis) -> list[float]:
    """Round numbers from low to high, `most` + 1 or fewer."""
    span = high - low
    if span <= 0 or not math.isfinite(span):
        return [low]
    step = 10.0 ** math.floor(math.log10(span / max(1, most)))
    step *= next((factor for factor in (1, 2, 2.5, 5, 10) if span / (step * factor) <= most), 10)
    if axis.whole:
        step = max(1.0, math.ceil(step))
    if axis.clock:
        days = 86_400.0 * math.ceil(span / most / 86_400)
        step = next((float(one) for one in CLOCK_STEPS if span / one <= most), days) if step > 10 else step
    first = math.ceil(low / step - 1e-9)
    return [round(number * step, 12) for number in range(first, math.floor(high / step + 1e-9) + 1)]


def thinned(points: Sequence[tuple[float, float]], most: int) -> list[tuple[float, float]]:
    """As many points or fewer, means of neighbours; NaN where one of them is."""
    if len(points) <= most:
        return list(points)
    found = []
    for part in range(most):
        some = points[part * len(points) // most : (part + 1) * len(points) // most]
        found.append((sum(p[0] for p in some) / len(some), sum(p[1] for p in some) / len(some)))
    return found


def _range(values: Sequence[float], axis: Axis, margin: float) -> tuple[float, float]:
    low = min(values, default=0.0) if axis.least is None else axis.least
    high = max(values, default=1.0) if axis.most is None else axis.most
    if high <= low:
        grow = abs(low) * 0.1 or 1.0
        low, high = (low - grow if axis.least is None else low), low + grow
    space = (high - low) * margin
    return (low - space if axis.least is None else low), (high + space if axis.most is None else high)


def _fit(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    scale = (end - start) / (high - low) if high > low else 0.0
    return lambda value: start + (min(max(value, low), high) - low) * scale


def _text(x: float, y: float, text: str, style: str, tip: str = "") -> str:
    inner = f"<title>{escape(tip)}</title>" if tip else ""
    return f'<text class="{style}" x="{_n(x)}" y="{_n(y)}">{escape(text)}{inner}</text>' if text else ""


def _n(value: float) -> str:
    """A length with a digit behind the point at most."""
    return f"{value:.1f}".removesuffix(".0")
