"""What a step costs a rank: its own compute, apart from input before it and waiting after it.

Compute runs from the batch in hand to the end of backward, before the rank waits for anyone: waiting equalises
ranks and would hide the straggler.
"""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import dataclass, field
from statistics import fmean, stdev

import torch

from engine.balance import Timing


class ComputeTimer:
    """Times the compute of a step: by CUDA events on a GPU, by the clock on a CPU.

    `seconds` may be asked for after the gradients have been exchanged: the stream has passed the events by then, so
    that asking adds no synchronisation.
    """

    def __init__(self, device: torch.device) -> None:
        self._events = (
            (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True))
            if device.type == "cuda"
            else None
        )
        self._start = self._stop = 0.0

    def start(self) -> None:
        """The batch is in hand."""
        if self._events:
            self._events[0].record()
        self._start = time.perf_counter()

    def stop(self) -> None:
        """Backward has been issued."""
        if self._events:
            self._events[1].record()
        self._stop = time.perf_counter()

    def seconds(self) -> float:
        """Seconds between start and stop, of the device that computed."""
        if self._events:
            self._events[1].synchronize()
            return float(self._events[0].elapsed_time(self._events[1])) / 1000
        return self._stop - self._start


@dataclass
class RankClock:
    """Collects a rank's timings: totals of the epoch, and samples per batch shape since the last decision."""

    compute_seconds: float = 0.0
    input_seconds: float = 0.0
    wait_seconds: float = 0.0
    _samples: dict[tuple[int, int], list[float]] = field(default_factory=lambda: defaultdict(list))
    _earlier: dict[tuple[int, int], list[float]] = field(default_factory=lambda: defaultdict(list))
    _warm: set[int] = field(default_factory=set)

    def add(self, bound: int, rows: int, compute: float, input: float, wait: float) -> None:
        """Record a step: local batch of `rows` rows padded to `bound`; seconds of compute, input and wait."""
        self.compute_seconds += compute
        self.input_seconds += input
        self.wait_seconds += wait
        if not rows:
            return
        # The first batch of a length pays for memory and kernels that the later ones find in place.
        if bound in self._warm:
            self._samples[bound, rows].append(compute)
        self._warm.add(bound)

    def take_timings(self, epoch_ends: bool) -> list[Timing]:
        """The samples since the last call, summed up per batch shape; at an epoch's end all since shares changed."""
        for shape, seconds in self._samples.items():
            self._earlier[shape] += seconds
        timings = [
            _sum_up(*shape, seconds)
            for shape, seconds in sorted((self._earlier if epoch_ends else self._samples).items())
        ]
        self._samples.clear()
        if epoch_ends:
            self._earlier.clear()
        return timings

    def forget(self) -> None:
        """Shares have changed: what was timed before says nothing of them."""
        self._samples.clear()
        self._earlier.clear()

    def totals(self) -> tuple[float, float, float]:
        """Seconds of compute, input and wait since the epoch began."""
        return self.compute_seconds, self.input_seconds, self.wait_seconds

    def start_epoch(self, totals: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> None:
        """Begin the epoch's totals, at 0 or where a checkpoint left them."""
        self.compute_seconds, self.input_seconds, self.wait_seconds = totals


def _sum_up(bound: int, rows: int, seconds: list[float]) -> Timing:
    # Means: a rank that is throttled runs most steps at full speed and stalls in some, which is its speed too. Only the
    # longest in twenty are left out: a hiccup that comes once is nobody's speed.
    kept = sorted(seconds)[: len(seconds) - len(seconds) // 20]
    return Timing(bound, rows, len(kept), fmean(kept), stdev(kept) if len(kept) > 1 else 0.0)
