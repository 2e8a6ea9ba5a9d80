"""From a job's steps to efficiency and its factors. Pure.

E = rows/s of the job / V, V the sum of the ranks' own rates v. Over the counted steps, with c the ranks' compute
seconds and n their rows, it is exactly the product of

    batch size  sum n / sum(v c)       the rate of the job's local batches over v. Compute alone is counted here while
                                       v counts whole steps: without any loss it is a little above 1
    balance     sum(v c) / (V max c)   mean/max compute time, each rank weighing by its rate
    exposure    max c / step time      the rest is exchange, clipping, optimizer, waiting for input
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean, median
from typing import Any

from benchmarks.report import Target

E_LEAST = {("local", 512): 0.95, ("local", 2048): 0.95, ("lab", 512): 0.80, ("lab", 2048): 0.90}
STALL = 5.0
"""a step that takes so many times the median was disturbed from outside: such figures are not to be trusted"""


@dataclass(frozen=True)
class Steps:
    """The counted steps of a method."""

    seconds: float
    """of all of them together"""
    each: list[float]
    rows: list[list[int]]
    """[step][rank]"""
    compute: list[list[float]]
    """[step][rank]"""
    input_seconds: float
    """of the rank that waited most"""
    controller_seconds: float

    @property
    def rate(self) -> float:
        """Rows per second of the whole job."""
        return sum(map(sum, self.rows)) / self.seconds


def counted(turns: Sequence[Mapping[str, Any]]) -> Steps:
    """Join turns; the first step of each is left out: it starts the input and warms the caches."""
    seconds, controller = 0.0, 0.0
    each: list[float] = []
    rows: list[list[int]] = []
    compute: list[list[float]] = []
    waited: list[list[float]] = []
    for turn in turns:
        ranks = [rank["steps"] for rank in turn["ranks"]]
        ends = [step[0] for step in ranks[0]]
        seconds += ends[-1] - ends[0]
        each += [after - before for before, after in pairwise(ends)]
        for step in list(zip(*ranks, strict=True))[1:]:
            rows.append([rank[2] for rank in step])
            compute.append([rank[3] for rank in step])
            waited.append([rank[4] for rank in step])
        controller += max(rank["controller_seconds"] for rank in turn["ranks"])
    return Steps(seconds, each, rows, compute, max(map(sum, zip(*waited, strict=True))), controller)


def percentile(values: Sequence[float], part: float) -> float:
    """The value below which so much of them lies, by the nearest rank."""
    return sorted(values)[max(0, math.ceil(part * len(values)) - 1)]


def factors(steps: Steps, rates: Sequence[float]) -> dict[str, float]:
    """E and what it is made of; only E and the rate where compute was not measured."""
    whole = sum(rates)
    stalls = sum(seconds > STALL * median(steps.each) for seconds in steps.each)
    found = {"rows_per_second": steps.rate, "E": steps.rate / whole, "stalls": stalls}
    longest = sum(map(max, steps.compute))
    if not longest:
        return found
    spent = [sum(rank) for rank in zip(*steps.compute, strict=True)]
    weighted = sum(rate * seconds for rate, seconds in zip(rates, spent, strict=True))
    even = [fmean(step) / max(step) for step in steps.compute]
    return found | {
        "batch_size": sum(map(sum, steps.rows)) / weighted,
        "balance": weighted / (whole * longest),
        "exposure": longest / steps.seconds,
        "mean_over_max": median(even),
        "mean_over_max_p10": percentile(even, 0.1),
        "input": steps.input_seconds / steps.seconds,
        "controller": steps.controller_seconds / steps.seconds,
    }


def rate_at(sizes: Mapping[int, float], rows: float) -> float:
    """A rate between those of measured local batches, by the logarithm of the rows; beyond them the nearest one's."""
    known = sorted(sizes)
    below, above = [size for size in known if size <= rows], [size for size in known if size >= rows]
    if not below or not above:
        return sizes[above[0] if above else below[-1]]
    low, high = below[-1], above[0]
    part = 0.0 if low == high else math.log(rows / low) / math.log(high / low)
    return sizes[low] + part * (sizes[high] - sizes[low])


def batch_size_alone(rows: Sequence[float], profiles: Sequence[Mapping[int, float]], rates: Sequence[float]) -> float:
    """The factor "batch size" as the ranks' profiles foretell it, without anything that the job does to them.

    Args:
        rows: mean local batch per rank.
        profiles: compute rate by local batch, per rank, measured without a job.
        rates: the ranks' own rates v, measured with the profiles.
    """
    # A rank whose rows are few or none takes no time, and loses none.
    spent = [n / rate_at(profile, n) if n else 0.0 for n, profile in zip(rows, profiles, strict=True)]
    return sum(rows) / sum(rate * seconds for rate, seconds in zip(rates, spent, strict=True))


def oracle_shares(profiles: Sequence[Mapping[int, float]], batch_size: int) -> list[float]:
    """Proportions by which all ranks finish together: by their compute rates at the local batches these give.

    Above a rank's best size its best rate counts: larger batches can be computed in pieces.
    """
    tops = [max(profile.values()) for profile in profiles]
    shares = [batch_size * top / sum(tops) for top in tops]
    for _ in range(20):
        at = [
            max([rate for size, rate in profile.items() if size <= n] + [rate_at(profile, n)])
            for profile, n in zip(profiles, shares, strict=True)
        ]
        shares = [batch_size * rate / sum(at) for rate in at]
    return shares


def time_over(turns: Sequence[Mapping[str, Any]], method: str, other: str) -> float | None:
    """A method's time per row over another's, the median over rounds: turns of one round stand side by side."""
    rates = {
        name: [counted([turn]).rate for turn in turns if turn["counted"] and turn["method"] == name]
        for name in (method, other)
    }
    if not rates[method] or not rates[other]:
        return None
    return median(b / a for a, b in zip(rates[method], rates[other], strict=True))


def reaction(turns: Sequence[Mapping[str, Any]], first: int) -> dict[str, float]:
    """After a slow-down: auto's median step time from the counted step `first` (from 0) on, and the new oracle's."""
    times = {turn["method"]: counted([turn]).each for turn in turns if turn["counted"]}
    auto, oracle = median(times["auto"][first:]), median(times["oracle"])
    return {"auto_step_seconds": auto, "oracle_step_seconds": oracle, "auto_over_oracle": auto / oracle}


def targets(settings: Sequence[Mapping[str, Any]]) -> list[Target]:
    """The issue's targets, for every setting that was tried; what a setting lacks cannot be judged."""
    found = []
    for setting in settings:
        name, kind = setting["name"], setting["kind"]
        network = "local" if setting["network"] == "local" else "lab"
        if kind == "reaction":
            found.append(Target(f"{name}: step over the new oracle's", setting.get("auto_over_oracle"), at_most=1.05))
            found.append(Target(f"{name}: controller", setting.get("controller"), at_most=0.005))
            continue
        if kind == "varying":
            found.append(Target(f"{name}: mean/max, median", setting.get("mean_over_max"), at_least=0.98))
            found.append(Target(f"{name}: mean/max, 10th pct", setting.get("mean_over_max_p10"), at_least=0.95))
        elif (network, setting["batch_size"]) in E_LEAST:
            least = E_LEAST[network, setting["batch_size"]]
            found.append(Target(f"{name}: E_auto", setting.get("E_auto"), at_least=least))
        found.append(Target(f"{name}: time over oracle's", setting.get("auto_over_oracle"), at_most=1.03))
        if setting["ratio"] == "1:1":
            found.append(Target(f"{name}: rows/s over even's", setting.get("auto_rate_over_even"), at_least=0.99))
    return found
