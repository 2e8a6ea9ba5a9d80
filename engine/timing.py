"""What a step costs a rank: its own compute, apart from input before it and waiting after it.

Compute runs from the batch in hand to the end of backward, without what the rank waits for others in between: waiting
equalises ranks and would hide the straggler.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import torch

STARVED = 0.1
"""part of the time that a rank may wait for its input before it is named"""
LOOK_FIELDS = 4
"""steps, mean rows, mean seconds, sum of squared deviations of the seconds"""


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
        self._start = self._seconds = 0.0

    def start(self) -> None:
        """The batch is in hand."""
        if self._events:
            self._events[0].record()
        self._seconds, self._start = 0.0, time.perf_counter()

    def pause(self) -> None:
        """From here on another rank may be waited for (on a CPU: a GPU's stream waits for nobody here)."""
        self._seconds += time.perf_counter() - self._start

    def resume(self) -> None:
        """The rank computes again."""
        self._start = time.perf_counter()

    def stop(self) -> None:
        """Backward has been issued."""
        if self._events:
            self._events[1].record()
        self.pause()

    def seconds(self) -> float:
        """Seconds between start and stop, of the device that computed."""
        if self._events:
            self._events[1].synchronize()
            return float(self._events[0].elapsed_time(self._events[1])) / 1000
        return self._seconds


class RankClock:
    """Collects a rank's timings: totals of the epoch, and samples per batch shape since the last look.

    Args:
        bounds: padded length of each bucket, all different.
    """

    def __init__(self, bounds: Sequence[int]) -> None:
        self._buckets = {bound: bucket for bucket, bound in enumerate(bounds)}
        self.compute_seconds = self.input_seconds = self.wait_seconds = 0.0
        self._samples: dict[tuple[int, int], list[float]] = defaultdict(list)
        self._warm: set[tuple[int, int]] = set()

    def add(self, bound: int, rows: int, compute: float, input: float, wait: float) -> None:
        """Record a step: local batch of `rows` rows padded to `bound`; seconds of compute, input and wait."""
        self.compute_seconds += compute
        self.input_seconds += input
        self.wait_seconds += wait
        if not rows:
            return
        # The first batch of a shape pays for memory and kernels that the later ones find in place.
        if (bound, rows) in self._warm:
            self._samples[bound, rows].append(compute)
        self._warm.add((bound, rows))

    def look(self) -> np.ndarray:
        """What was timed since the last call, and begin anew.

        Returns:
            float64 [buckets, LOOK_FIELDS]. Of a bucket with batches of several sizes the size that came most often
            counts: a short batch measures little but the fixed cost.
        """
        found = np.zeros((len(self._buckets), LOOK_FIELDS))
        by_bucket: dict[int, list[tuple[int, list[float]]]] = defaultdict(list)
        for (bound, rows), seconds in sorted(self._samples.items()):
            by_bucket[self._buckets[bound]].append((rows, seconds))
        for bucket, shapes in by_bucket.items():
            rows, seconds = max(shapes, key=lambda shape: (len(shape[1]), shape[0]))
            kept = np.sort(seconds)
            # Means: a rank that is throttled runs most steps at full speed and stalls in some, which is its speed too.
            # Only the longest in twenty are left out: a hiccup that comes once is nobody's speed.
            kept = kept[: len(kept) - len(kept) // 20]
            found[bucket] = len(kept), rows, kept.mean(), ((kept - kept.mean()) ** 2).sum()
        self.forget()
        return found

    def forget(self) -> None:
        """Shares have changed: what was timed since the last look is of both."""
        self._samples.clear()

    def totals(self) -> tuple[float, float, float]:
        """Seconds of compute, input and wait since the epoch began."""
        return self.compute_seconds, self.input_seconds, self.wait_seconds

    def start_epoch(self, totals: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> None:
        """Begin the epoch's totals, at 0 or where a checkpoint left them."""
        self.compute_seconds, self.input_seconds, self.wait_seconds = totals
