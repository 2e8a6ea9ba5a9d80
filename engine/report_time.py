"""Where a run's time went, from its record: efficiency and its factors, what was lost to what, who was last. Pure.

E = rows/s of the job / V, V the sum of the ranks' own best rates v. With c a rank's compute seconds and n its rows

    batch size  sum n / sum(v n / r(n))   r: the rank's rate at the batches it had in the job, by its start-up profile
    balance     sum(v c) / (V max c)      mean/max compute time, each rank weighing by its rate
    exposure    max c / seconds           the rest is exchange, clipping, optimizer, waiting for input

as in benchmarks/balance_figures.py, which measures v where a run has only its profile. max c is summed over steps where
the run recorded that ("timeline"), over epochs otherwise, which makes balance look better than it was.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from engine.report_record import Epoch, Record, Times, number


@dataclass(frozen=True)
class Span:
    """Steps that were made on the same ranks; lists are per rank, times are seconds."""

    steps: int
    seconds: float
    rows: list[float]
    compute: list[float]
    input: list[float]
    wait: list[float]
    longest_compute: float
    longest_ready: float
    """of input and compute together: what the exchange of gradients had to wait for"""
    least_wait: float
    """what a step took after the last rank was ready: the exchange itself"""
    last_steps: list[float]
    """how often each rank was the last to be ready; empty where that was not recorded"""

    @property
    def ranks(self) -> int:
        """Their number."""
        return len(self.compute)

    @property
    def exact(self) -> bool:
        """Whether the longest times are sums over steps, not over epochs."""
        return bool(self.last_steps)


def span_of(record: Record, epoch: Epoch) -> Span | None:
    """An epoch's times; None where they were not recorded. In an epoch that was resumed: of its later part."""
    ranks = len(epoch.compute)
    if not epoch.seconds or not ranks or len(epoch.input) != ranks or len(epoch.wait) != ranks:
        return None
    known = [times for times in record.times if times.epoch == epoch.number and len(times.rows) == ranks]
    if known:
        return join([_span_of_times(times) for times in known])
    total = sum(epoch.shares)
    shares = epoch.shares if len(epoch.shares) == ranks and total else [1.0] * ranks
    rows = [(epoch.rows or 0.0) * share / sum(shares) for share in shares]
    return Span(
        epoch.step - epoch.first_step + 1,
        epoch.seconds,
        rows,
        epoch.compute,
        epoch.input,
        epoch.wait,
        max(epoch.compute),
        max(c + i for c, i in zip(epoch.compute, epoch.input, strict=True)),
        min(epoch.wait),
        [],
    )


def _span_of_times(times: Times) -> Span:
    ranks = len(times.rows)

    def sums(table: Sequence[Sequence[float]]) -> list[float]:
        return [sum(row) for row in table]

    last = times.last_steps if len(times.last_steps) == ranks else [0.0] * ranks
    return Span(
        times.steps,
        times.seconds,
        sums(times.rows),
        sums(times.compute),
        sums(times.input),
        sums(times.wait),
        times.longest_compute,
        times.longest_ready,
        times.least_wait,
        last,
    )


def join(spans: Sequence[Span]) -> Span:
    """Several, one after the other, on the same number of ranks."""

    def sums(of: Callable[[Span], Sequence[float]]) -> list[float]:
        return [sum(column) for column in zip(*(of(span) for span in spans), strict=True)]

    exact = all(span.exact for span in spans)
    return Span(
        sum(span.steps for span in spans),
        sum(span.seconds for span in spans),
        sums(lambda span: span.rows),
        sums(lambda span: span.compute),
        sums(lambda span: span.input),
        sums(lambda span: span.wait),
        sum(span.longest_compute for span in spans),
        sum(span.longest_ready for span in spans),
        sum(span.least_wait for span in spans),
        sums(lambda span: span.last_steps) if exact else [],
    )


@dataclass(frozen=True)
class Efficiency:
    """E and its factors."""

    batch_size: float | None
    """None where there was no start-up profile"""
    balance: float
    exposure: float
    mean_over_max: float
    """of compute, every rank weighing the same"""

    @property
    def known(self) -> float:
        """The product of what is known; E where all is."""
        return self.balance * self.exposure * (1.0 if self.batch_size is None else self.batch_size)

    @property
    def whole(self) -> float | None:
        """E, None where a factor is not known."""
        return None if self.batch_size is None else self.known


def efficiency_of(
    span: Span, profile: Sequence[Sequence[tuple[int, int, float]]], batch_size: int
) -> Efficiency | None:
    """E and its factors over a span; None where nothing was computed.

    Args:
        profile: per rank, what the start-up profile timed: padded length, rows, seconds. Empty for none.
        batch_size: rows of a global batch.
    """
    longest = span.longest_compute
    if not longest or not span.seconds:
        return None
    rates, factor = rates_of(span), None
    curves = [_curve(points, batch_size) for points in profile]
    if len(curves) == span.ranks and all(curves):
        rates = [max(curve.values()) for curve in curves]
        factor = _batch_size_factor(span, curves, rates)
    weighted = sum(rate * seconds for rate, seconds in zip(rates, span.compute, strict=True))
    mean = sum(span.compute) / span.ranks
    balance = weighted / (sum(rates) * longest) if sum(rates) else mean / longest
    return Efficiency(factor, min(1.0, balance), min(1.0, longest / span.seconds), min(1.0, mean / longest))


def rates_of(span: Span) -> list[float]:
    """Rows per second of compute, per rank, 0 where a rank had none."""
    return [rows / seconds if rows and seconds else 0.0 for rows, seconds in zip(span.rows, span.compute, strict=True)]


def _curve(points: Sequence[tuple[int, int, float]], batch_size: int) -> dict[int, float]:
    """Rows per second by rows, in the length that comes first: the one with most of the work."""
    return {rows: rows / seconds for bound, rows, seconds in points if bound == points[0][0] and rows <= batch_size}


def _batch_size_factor(span: Span, curves: Sequence[dict[int, float]], rates: Sequence[float]) -> float | None:
    spent = total = 0.0
    for curve, rate, rows in zip(curves, rates, span.rows, strict=True):
        if rows:
            spent += rate * rows / rate_at(curve, rows / span.steps)
            total += rows
    return total / spent if spent else None


def rate_at(curve: dict[int, float], rows: float) -> float:
    """The rate at so many rows, between measured ones by the logarithm. Above the best size that one's: such a batch is
    computed in pieces."""
    known = sorted(curve)
    best = max(known, key=lambda size: curve[size])
    rows = min(max(rows, known[0]), best)
    above = next(size for size in known if size >= rows)
    below = max((size for size in known if size <= rows), default=above)
    part = 0.0 if below == above else math.log(rows / below) / math.log(above / below)
    return curve[below] + part * (curve[above] - curve[below])


@dataclass(frozen=True)
class Parts:
    """Seconds of a span's steps, by what they went into; they add up to the span's."""

    compute: float
    """that would have been left with the same compute spread evenly"""
    imbalance: float
    """the slowest rank's compute beyond that"""
    input: float
    """by which input held up the rank that was last"""
    exchange: float
    """after the last rank was ready"""
    rest: float
    """clipping, optimizer and what else was not timed"""


def parts_of(span: Span, efficiency: Efficiency) -> Parts:
    """Where the time went."""
    ideal = efficiency.balance * span.longest_compute
    ready = min(max(span.longest_ready, span.longest_compute), span.seconds)
    longest = min(span.longest_compute, ready)
    exchange = min(span.least_wait, span.seconds - ready) if span.ranks > 1 else 0.0
    return Parts(ideal, longest - ideal, ready - longest, exchange, span.seconds - ready - exchange)


NOTABLE = 0.03
"""part of the time from which on a loss is worth a sentence"""


@dataclass(frozen=True)
class Slowest:
    """The rank that the others waited for most."""

    rank: int
    last: float | None
    """part of the steps in which it was the last to be ready; None where that was not recorded"""
    why: str
    """"compute", "input", or "" where it does not stand out"""


def slowest_of(span: Span, parts: Parts) -> Slowest | None:
    """Who was last, and why; None with one rank."""
    if span.ranks < 2:
        return None
    ready = [c + i for c, i in zip(span.compute, span.input, strict=True)]
    counted = span.exact and sum(span.last_steps) > 0
    by = span.last_steps if counted else ready
    rank = max(range(span.ranks), key=lambda one: by[one])
    more_compute = span.compute[rank] - sum(span.compute) / span.ranks
    more_input = span.input[rank] - sum(span.input) / span.ranks
    # Only what is both lost and this rank's own: where another rank is late at every step, none is behind it.
    least = NOTABLE * span.seconds
    reasons = [
        (lost, name)
        for name, lost, own in (("compute", parts.imbalance, more_compute), ("input", parts.input, more_input))
        if lost >= least and own >= least
    ]
    why = max(reasons)[1] if reasons else ""
    return Slowest(rank, by[rank] / span.steps if counted else None, why)


def slow_epochs(times: RunTimes) -> list[tuple[int, Slowest]]:
    """Epochs in which a rank stood out that does not in the whole run, or not for that reason, by their numbers."""
    whole = (times.slowest.rank, times.slowest.why) if times.slowest else None
    found = []
    for epoch, span, efficiency in times.spans:
        slowest = slowest_of(span, parts_of(span, efficiency))
        if slowest is not None and slowest.why and (slowest.rank, slowest.why) != whole:
            found.append((epoch.number, slowest))
    return found


@dataclass(frozen=True)
class RunTimes:
    """A run's times: of the epochs on as many ranks as the last one."""

    spans: list[tuple[Epoch, Span, Efficiency]]
    left_out: list[int]
    """numbers of epochs on another number of ranks, or without times"""
    whole: Span
    efficiency: Efficiency
    parts: Parts
    slowest: Slowest | None


def times_of(record: Record) -> RunTimes | None:
    """All that a record says of time; None where it has no epoch with times."""
    found, left_out = [], []
    ranks = len(record.epochs[-1].compute) if record.epochs else 0
    batch = int(number(record.config.get("batch_size")) or 0)
    for epoch in record.epochs:
        span = span_of(record, epoch) if len(epoch.compute) == ranks else None
        efficiency = efficiency_of(span, record.profile, batch) if span else None
        if span and efficiency:
            found.append((epoch, span, efficiency))
        else:
            left_out.append(epoch.number)
    if not found:
        return None
    whole = join([span for _, span, _ in found])
    efficiency = efficiency_of(whole, record.profile, batch)
    assert efficiency is not None, "a sum of spans that computed has computed"
    parts = parts_of(whole, efficiency)
    return RunTimes(found, left_out, whole, efficiency, parts, slowest_of(whole, parts))
