"""Numbers for people: units, digits and lists in words."""

from __future__ import annotations

import datetime
from collections.abc import Sequence

NOT_RECORDED = "not recorded"
THIN = "\N{NARROW NO-BREAK SPACE}"
"""between a number and its unit"""


def count(value: float | None) -> str:
    """12,345."""
    return NOT_RECORDED if value is None else f"{value:,.0f}"


def large(value: float) -> str:
    """12,345, or 1.23 million."""
    for size, name in ((1e9, "billion"), (1e6, "million")):
        if value >= size:
            return f"{value / size:.3g} {name}"
    return f"{value:,.0f}"


def percent(value: float | None, digits: int = 0) -> str:
    """Of a part 0..1: 31 %. What is not 0 is not told as 0, nor what is not 1 as 1."""
    if value is None:
        return NOT_RECORDED
    if 0 < value < 0.5 * 10 ** (-2 - digits):
        return f"< {10.0**-digits:.{digits}f}{THIN}%"
    if 1 - 0.5 * 10 ** (-2 - digits) <= value < 1:
        return f"> {100 - 10.0**-digits:.{digits}f}{THIN}%"
    return f"{value * 100:.{digits}f}{THIN}%"


def signed_percent(value: float | None) -> str:
    """+12.3 %, -4.0 %."""
    return NOT_RECORDED if value is None else f"{value * 100:+.1f}{THIN}%".replace("-", "\N{MINUS SIGN}")


def figure(value: float | None, digits: int = 3) -> str:
    """0.876."""
    return NOT_RECORDED if value is None else f"{value:.{digits}f}"


def rate(value: float | None) -> str:
    """2,671 reviews/s; few of them with a digit more."""
    if value is None:
        return NOT_RECORDED
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def duration(seconds: float | None) -> str:
    """3 h 05 min, 1 min 52 s, 8.5 s, 12 ms."""
    if seconds is None:
        return NOT_RECORDED
    if seconds < 1:
        return f"{seconds * 1000:.3g}{THIN}ms" if seconds > 0 else f"0{THIN}s"
    if seconds < 59.95:
        return f"{seconds:.1f}{THIN}s" if seconds < 10 else f"{seconds:.0f}{THIN}s"
    whole = round(seconds)
    days, hours, minutes = whole // 86_400, whole // 3600 % 24, whole // 60 % 60
    if days:
        return f"{days}{THIN}d {hours:02d}{THIN}h"
    if hours:
        return f"{hours}{THIN}h {minutes:02d}{THIN}min"
    return f"{minutes}{THIN}min {whole % 60:02d}{THIN}s"


def moment(seconds: float | None) -> str:
    """A Unix time: 2026-11-25 15:03 UTC."""
    if seconds is None or not 0 <= seconds < 1e11:
        return NOT_RECORDED
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")


def several(number: float, one: str, many: str = "") -> str:
    """1 step, 2 steps."""
    return f"{number:,.0f} {one if number == 1 else many or one + 's'}"


def listed(items: Sequence[str], most: int = 6) -> str:
    """a, b and c; of many the first, and how many more."""
    if len(items) > most:
        return f"{', '.join(items[: most - 1])} and {len(items) - most + 1} more"
    return " and ".join(filter(None, [", ".join(items[:-1]), *items[-1:]]))


def ranges(values: Sequence[int], most: int = 6) -> str:
    """0 to 3, 7 and 9: whole numbers in rising order, neighbours put together."""
    groups: list[list[int]] = []
    for value in values:
        if groups and value == groups[-1][-1] + 1:
            groups[-1].append(value)
        else:
            groups.append([value])
    texts = [f"{group[0]} to {group[-1]}" if len(group) > 2 else ", ".join(map(str, group)) for group in groups]
    return listed(texts, most)
