"""Time and money of a training on every mix of machines, and which mixes are worth having. Pure.

A machine has one GPU or several, and a GPU is a rank. A machine's rate is measured on all of its GPUs together, so
that what they share (host, bus, input) is in it; what passes between machines is added as a ring allreduce over all
ranks, which the slowest network bounds. A step takes as long as its slowest rank, and the exchange.

Shapes: R ranks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations_with_replacement
from math import comb

import numpy as np

from engine.shares import Costs, even_shares, optimal_shares
from engine.simulation_ranks import Network

PARTS = 1_000_000
"""rows of a batch of which nothing is known: so many that rounding shares to whole rows costs nothing"""
EQUAL = 1e-9
"""two times or costs that differ by less than this part are equal"""
Mix = Mapping[str, int]
"""how many of each machine; in the order of the machines"""


@dataclass(frozen=True)
class Machine:
    """One kind of machine."""

    name: str
    dollars_per_hour: float
    rate: float
    """units of work per second of the whole machine: rows, or trainings of the reference"""
    gpus: int = 1
    bandwidth: float = 0.0
    """bytes per second to other machines; 0: not known"""


@dataclass(frozen=True)
class Training:
    """What is to be done on each mix."""

    work: float
    """in the units of the machines' rates: rows of all epochs, or trainings of the reference"""
    batch_size: int
    """rows of the global batch, or of each GPU's where it grows; PARTS where it is not known"""
    steps: float
    """of the whole training with batches of batch_size, in the units of the network's seconds"""
    grows: bool = False
    """whether batch_size is each GPU's, so that more GPUs take fewer steps"""
    network: Network = field(default_factory=Network)
    """between machines; without a bandwidth each mix has the least of its machines'"""

    def exchange_seconds(self, ranks: int, bandwidth: float) -> float:
        """Seconds of the whole training that go into the exchange between machines."""
        network = self.network if self.network.bandwidth else replace(self.network, bandwidth=bandwidth)
        return self.steps / (ranks if self.grows else 1) * network.seconds(ranks)


@dataclass(frozen=True)
class Point:
    """What a training takes."""

    seconds: float
    dollars: float

    def beats(self, other: Point) -> bool:
        """Whether it is no worse in both and better in one."""
        slack = 1 + EQUAL
        return (
            self.seconds <= other.seconds * slack
            and self.dollars <= other.dollars * slack
            and (self.seconds * slack < other.seconds or self.dollars * slack < other.dollars)
        )


@dataclass(frozen=True)
class Outcome:
    """A training on one mix."""

    mix: Mix
    ranks: int
    dollars_per_hour: float
    even: Point
    """the same rows on every rank"""
    balanced: Point
    """the shares that let all ranks finish together"""
    exchange_seconds: float
    """of either, between machines"""

    @property
    def saved(self) -> float:
        """Part of the even split's time, and so of its money, that balancing takes off."""
        return 1 - self.balanced.seconds / self.even.seconds

    @property
    def name(self) -> str:
        """The mix in words, such as 3 g3.4xlarge + 1 p2.xlarge."""
        return " + ".join(f"{count} {name}" for name, count in self.mix.items())


def count_mixes(kinds: int, most: int) -> int:
    """How many mixes of 1 to `most` machines there are."""
    return comb(kinds + most, most) - 1


def all_mixes(names: Sequence[str], most: int) -> list[Mix]:
    """Every mix of 1 to `most` machines, the small ones first."""
    return [
        {name: chosen.count(name) for name in names if name in chosen}
        for size in range(1, most + 1)
        for chosen in combinations_with_replacement(names, size)
    ]


def cluster(mix: Mix, machines: Mapping[str, Machine]) -> list[Machine]:
    """The machine of every rank of a mix."""
    return [machines[name] for name, count in mix.items() for _ in range(count * machines[name].gpus)]


def predict(mix: Mix, machines: Mapping[str, Machine], training: Training) -> Outcome:
    """Time and money of a training on one mix, by an even split and by the exact optimum of shares.

    Args:
        mix: at least one machine.
        machines: all those in the mix, by name.
        training: what is to be done.
    """
    rates_R = np.array([machine.rate / machine.gpus for machine in cluster(mix, machines)])
    ranks = len(rates_R)
    batch_size = training.batch_size * (ranks if training.grows else 1)
    exchange = 0.0
    if sum(mix.values()) > 1:
        exchange = training.exchange_seconds(ranks, min(machines[name].bandwidth for name in mix))
    dollars_per_hour = sum(machines[name].dollars_per_hour * count for name, count in mix.items())

    def point(shares: Sequence[int]) -> Point:
        seconds = training.work / batch_size * float((np.array(shares) / rates_R).max()) + exchange
        return Point(seconds, seconds / 3600 * dollars_per_hour)

    even = point(even_shares(ranks, batch_size))
    balanced = point(optimal_shares(_costs(rates_R, batch_size), batch_size)) if np.ptp(rates_R) else even
    return Outcome(dict(mix), ranks, dollars_per_hour, even, balanced, exchange)


def _costs(rates_R: np.ndarray, batch_size: int) -> Costs:
    rows_RK = np.tile([0.0, float(batch_size)], (len(rates_R), 1))
    return Costs(rows_RK, rows_RK / rates_R[:, None])


def front(points: Sequence[Point]) -> list[bool]:
    """Which points no other beats: the Pareto front of time against money."""
    # In order of money a point is beaten by one before it, or by one of the same money (which may stand after it).
    order = sorted(range(len(points)), key=lambda at: (points[at].dollars, points[at].seconds))
    found, kept = [False] * len(points), list[Point]()
    for at in order:
        if not any(other.beats(points[at]) for other in kept):
            found[at] = True
            kept.append(points[at])
    # Within the slack a later point may beat an earlier one.
    return [
        is_kept and not any(other.beats(point) for other in kept)
        for is_kept, point in zip(found, points, strict=True)
    ]  # fmt: skip


def fastest_within(outcomes: Sequence[Outcome], budget: float) -> Outcome | None:
    """The fastest balanced training for at most so many dollars; of equal ones the cheapest."""
    within = [one for one in outcomes if one.balanced.dollars <= budget]
    return min(within, key=lambda one: (one.balanced.seconds, one.balanced.dollars), default=None)


def cheapest_within(outcomes: Sequence[Outcome], seconds: float) -> Outcome | None:
    """The cheapest balanced training of at most so many seconds; of equal ones the fastest."""
    within = [one for one in outcomes if one.balanced.seconds <= seconds]
    return min(within, key=lambda one: (one.balanced.dollars, one.balanced.seconds), default=None)
