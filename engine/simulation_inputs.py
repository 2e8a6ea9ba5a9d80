"""From the command line of `python -m engine.simulate`, or from a real run's metrics, to a scenario."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from engine.errors import UsageError
from engine.plan import Plan
from engine.simulation import Scenario
from engine.simulation_metrics import read_metrics
from engine.simulation_ranks import Failure, Hardware, Network, Throttle, TrueCosts
from native.format import BucketShape

MOST_RANKS = 100_000
EXAMPLE_SPEEDS = (1.0, 1.0, 1.0, 0.56)


def scenario_of(options: argparse.Namespace) -> tuple[Scenario, list[str]]:
    """The scenario, and what must be said about where it comes from.

    Raises:
        UsageError: a value that makes no sense, or a file that cannot be used.
    """
    _check_numbers(options)
    if options.metrics is not None:
        rates, sizes, network, notes = _from_metrics(options)
    else:
        if options.add_speeds:
            raise UsageError("--add-speeds adds ranks to those of a real run: give --metrics RUN/metrics.jsonl too")
        rates = np.array(_speeds(options)) * (options.rows_per_second or 1000.0)
        batch_size = options.batch_size or 512
        sizes = batch_size, _rows(options, batch_size)
        network, notes = _network(options, 0.0), []
    plan = Plan(layout=_layout(options.lengths, sizes[1]), batch_size=sizes[0], seed=options.seed)
    fixed_R = np.array(_per_rank("--fixed", options.fixed or (0.0,), len(rates)))
    caps = tuple(int(cap) for cap in options.rank_caps)
    if caps and (len(caps) != len(rates) or min(caps) < 0):
        raise UsageError(
            f"--rank-caps names {len(caps)} ranks, there are {len(rates)}; give a number per rank, 0: none"
        )
    hardware = Hardware(
        _costs(plan, rates, fixed_R, options.per_time_step),
        network,
        options.noise,
        [_throttle(text, len(rates)) for text in options.throttle or ()],
        [_failure(text, len(rates)) for text in options.fail or ()],
        options.seed,
    )
    scenario = Scenario(
        plan, hardware, options.epochs, options.balance_every, caps, options.checkpoint_every,
        options.checkpoint_minutes, options.restart_seconds,
    )  # fmt: skip
    _check_events(scenario)
    return scenario, notes


def _from_metrics(options: argparse.Namespace) -> tuple[np.ndarray, tuple[int, int], Network, list[str]]:
    if options.ranks or options.speeds or options.rows_per_second:
        raise UsageError("--metrics brings the ranks and their speeds: leave out --ranks, --speeds, --rows-per-second")
    found, rough = read_metrics(options.metrics)
    added = [max(found.rates) * speed for speed in options.add_speeds]
    batch_size = options.batch_size or found.batch_size
    rows = found.rows if options.rows is None and options.steps is None else _rows(options, batch_size)
    ranks, more = len(found.rates), len(found.rates) + len(added)
    rest = found.step_seconds
    if not options.bandwidth and ranks > 1:
        rest *= ((more - 1) / more) / ((ranks - 1) / ranks)
    notes = [
        f"{options.metrics}: epoch {found.epoch} took {found.seconds:,.1f} s on {ranks} ranks; their compute is taken "
        "as proportional to rows" + ("; shares changed inside it, so their speeds are rough" if rough else ""),
        f"exchange and the rest took {found.step_seconds * 1000:.1f} ms a step"
        + (f", on {more} ranks {rest * 1000:.1f} (as a ring's bytes)" if added and ranks > 1 else "")
        + ("; --bandwidth replaces them" if options.bandwidth else ""),
    ]
    return (
        np.array([*found.rates, *added]),
        (batch_size, rows),
        _network(options, 0.0 if options.bandwidth else rest),
        notes,
    )


def _network(options: argparse.Namespace, step_seconds: float) -> Network:
    return Network(
        options.bandwidth * 1e9 / 8,
        options.latency * 1e-6,
        options.gradient_bytes,
        options.hidden,
        step_seconds + options.step_seconds,
    )


def _speeds(options: argparse.Namespace) -> list[float]:
    speeds = list(options.speeds) or ([1.0] if options.ranks else list(EXAMPLE_SPEEDS))
    if min(speeds) <= 0 or not all(map(math.isfinite, speeds)):
        raise UsageError("--speeds must be numbers above 0, such as 1,1,1,0.56")
    ranks = options.ranks or len(speeds)
    if ranks > MOST_RANKS:
        raise UsageError(f"--ranks must be at most {MOST_RANKS:,}")
    return _per_rank("--speeds", speeds, ranks)


def _per_rank(name: str, values: Sequence[float], ranks: int) -> list[float]:
    """A number per rank; fewer are repeated in turn."""
    if ranks % len(values) or len(values) > ranks:
        raise UsageError(f"{name} gives {len(values)} numbers for {ranks} ranks; give as many, or a part that fits")
    return list(values) * (ranks // len(values))


def _rows(options: argparse.Namespace, batch_size: int) -> int:
    if options.rows is not None and options.steps is not None:
        raise UsageError("--rows and --steps both say how long an epoch is: leave one out")
    return int(options.rows if options.rows is not None else (options.steps or 1000) * batch_size)


def _layout(lengths: str, rows: int) -> list[BucketShape]:
    """Buckets of the lengths, such as 32,64,100 (equal parts) or 32:3,100:1 (three quarters and one)."""
    parts: list[tuple[int, float]] = []
    for item in lengths.split(","):
        bound, _, part = item.partition(":")
        try:
            parts.append((int(bound), float(part or 1)))
        except ValueError:
            raise UsageError(f"--lengths {lengths!r}: give lengths, or LENGTH:PART, such as 32:3,100:1") from None
    bounds = [bound for bound, _ in parts]
    whole = sum(part for _, part in parts)
    if sorted(set(bounds)) != bounds or bounds[0] < 1 or not 0 < min(part for _, part in parts) <= whole < math.inf:
        raise UsageError(f"--lengths {lengths!r}: lengths must rise, and parts be above 0")
    counts = [int(rows * part / whole) for _, part in parts]
    counts[-1] += rows - sum(counts)
    return [BucketShape(bound, count, max(1, count), 1) for bound, count in zip(bounds, counts, strict=True) if count]


def _costs(plan: Plan, rates: np.ndarray, fixed_R: np.ndarray, per_time_step: float) -> list[TrueCosts]:
    """fixed + per_time_step * L + rows * L / (longest L * rate)."""
    longest = plan.layout[-1].bound
    return [
        TrueCosts.affine(
            fixed_R + per_time_step * shape.bound, shape.bound / longest / rates, plan.batch_size
        )
        for shape in plan.layout
    ]  # fmt: skip


def _parse(name: str, text: str, form: str, kinds: Sequence[Callable[[str], Any]], least: int) -> list[Any]:
    parts = text.split(":")
    try:
        if least <= len(parts) <= len(kinds):
            return [kind(part) for kind, part in zip(kinds, parts, strict=False)]
    except ValueError:
        pass
    raise UsageError(f"{name} {text!r} is not {form}")


def _throttle(text: str, ranks: int) -> Throttle:
    found = _parse("--throttle", text, "RANK:FACTOR:FROM[:TO], such as 2:0.33:300:600", (int, float, int, int), 3)
    rank, factor, first, last = (*found, None)[:4]
    _check_rank("--throttle", text, rank, ranks)
    if not 0 < factor < math.inf or first < 1 or (last is not None and last < first):
        raise UsageError(f"--throttle {text!r}: FACTOR must be above 0, FROM at least 1 and TO at least FROM")
    return Throttle(rank, factor, first, last)


def _failure(text: str, ranks: int) -> Failure:
    rank, step = _parse("--fail", text, "RANK:STEP, such as 1:500", (int, int), 2)
    _check_rank("--fail", text, rank, ranks)
    return Failure(rank, step)


def _check_rank(name: str, text: str, rank: int, ranks: int) -> None:
    if not 0 <= rank < ranks:
        raise UsageError(f"{name} {text!r}: ranks are 0 to {ranks - 1}")


def _check_numbers(options: argparse.Namespace) -> None:
    """Ranges of what stands for itself."""
    least_one = ("ranks", "batch_size", "rows", "steps", "epochs", "balance_every")
    least_zero = ("noise", "bandwidth", "latency", "gradient_bytes", "hidden", "per_time_step", "step_seconds",
                  "checkpoint_every", "checkpoint_minutes", "restart_seconds", "seed")  # fmt: skip
    for name in (*least_one, *least_zero, "rows_per_second"):
        value = getattr(options, name)
        flag = "--" + name.replace("_", "-")
        if value is None:
            continue
        if not math.isfinite(value) or value < (1 if name in least_one else 0):
            raise UsageError(f"{flag} must be at least {1 if name in least_one else 0}")
    if options.hidden > 1 or options.noise > 1:
        raise UsageError("--hidden and --noise must be at most 1")
    if options.rows_per_second == 0:
        raise UsageError("--rows-per-second must be above 0")
    if options.seed >= 1 << 63:
        raise UsageError("--seed must be below 2^63")
    for name, values in (("--fixed", options.fixed), ("--add-speeds", options.add_speeds)):
        if not all(math.isfinite(value) and value >= 0 for value in values) or (name != "--fixed" and 0 in values):
            raise UsageError(f"{name} must be numbers {'of at least' if name == '--fixed' else 'above'} 0")


def _check_events(scenario: Scenario) -> None:
    failures = scenario.hardware.failures
    for failure in failures:
        if not 1 <= failure.step <= scenario.steps:
            raise UsageError(f"--fail {failure.rank}:{failure.step}: the run has steps 1 to {scenario.steps}")
    if len({failure.rank for failure in failures}) != len(failures):
        raise UsageError("--fail names a rank twice: it dies but once")
    if len(failures) >= scenario.hardware.ranks:
        raise UsageError("--fail leaves no rank alive")
