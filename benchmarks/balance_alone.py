"""One rank's own rate: whole training steps with nothing exchanged, in a process that has not started Horovod or MPI.

Started by benchmarks.balance, one process per rank, with that rank's core and quota. It waits for requests
(request-K.json in the scratch folder) and answers each (alone-K-RANK.json). All ranks measure at the same time: a rank
that is done keeps training, unmeasured, until the last one is.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

import engine
from benchmarks.balance_work import CLIP_NORM, SEED, get, make, put, settle
from engine.input import LocalBatch, Prefetcher, ReviewSource

EVER = 1 << 40
PATIENCE = 900.0
LONGEST_STEP = 2.5
"""seconds: a local batch that takes longer is not tried"""
FEWEST_STEPS = 2
SMALLEST = 32


class Rank:
    """This process as one of several that measure together."""

    def __init__(self, data: engine.Dataset, scratch: Path, rank: int, ranks: int) -> None:
        self._data, self._scratch, self._rank, self._ranks = data, scratch, rank, ranks
        self._model, self._loss, self._optimizer = make(data.ids)
        self._meetings = 0

    def profile(self, batch_size: int, seconds: float) -> dict[str, Any]:
        """Rates at powers of two and at the batch size, then the best one's again."""
        sizes = [1 << power for power in range(SMALLEST.bit_length() - 1, 30) if 1 << power < batch_size]
        rates: dict[int, dict[str, float]] = {}
        for size in (*sizes, batch_size):
            known = rates.get(max(rates)) if rates else None
            # All ranks stay busy while one measures: where a step would take too long, with the last size again.
            fits = known is None or size / known["rate"] <= LONGEST_STEP
            found = self.measure(size if fits else max(rates), seconds)
            if fits:
                rates[size] = found
        best = max(rates, key=lambda size: rates[size]["rate"])
        return {"sizes": rates, "best": best, **self.measure(best, 2 * seconds)}

    def measure(self, size: int, seconds: float) -> dict[str, float]:
        """Rows per second of whole steps, and of their compute part, at a local batch of `size` rows."""
        plan = engine.Plan(layout=self._data.layout, batch_size=size, seed=SEED)
        source = ReviewSource(self._data, plan)
        batches = Prefetcher(plan, source, 0, [(size,)], epoch=0, step=0, epochs=EVER)
        try:
            for _ in self._until_all_are_here():  # they also warm up: the first step takes memory
                self._step(batches, size)
            times = self._steps(batches, size, seconds, len(plan.layout))
            for _ in self._until_all_are_here():
                self._step(batches, size)
        finally:
            batches.close()
        # Every length weighs as it does in the data: equal numbers of rows.
        whole, compute = (fmean(fmean(step[part] for step in steps) for steps in times.values()) for part in (0, 1))
        return {"rate": size / whole, "compute_rate": size / compute}

    def _steps(
        self, batches: Prefetcher, size: int, seconds: float, lengths: int
    ) -> dict[int, list[tuple[float, float]]]:
        times: dict[int, list[tuple[float, float]]] = defaultdict(list)
        end = time.perf_counter() + seconds
        while (
            time.perf_counter() < end
            or len(times) < lengths
            or min(len(steps) for steps in times.values()) < FEWEST_STEPS
        ):
            bound, whole, compute = self._step(batches, size)
            times[bound].append((whole, compute))
        return times

    def _step(self, batches: Prefetcher, size: int) -> tuple[int, float, float]:
        """A whole training step; the padded length, seconds of all of it and of its compute."""
        began = time.perf_counter()
        batch: LocalBatch = batches.next()
        while batch.rows < size:  # a bucket's short last batch
            batch, began = batches.next(), time.perf_counter()
        in_hand = time.perf_counter()
        self._optimizer.zero_grad()
        losses = self._loss(self._model(*batch.inputs), batch.target)
        (losses.sum() / batch.rows).backward()
        compute = time.perf_counter() - in_hand
        torch.nn.utils.clip_grad_norm_(self._model.parameters(), CLIP_NORM)
        self._optimizer.step()
        return batch.bound, time.perf_counter() - began, compute

    def _until_all_are_here(self) -> Iterator[None]:
        """Yields, once at least, until every rank has come to this place."""
        self._meetings += 1
        marks = [self._scratch / f"meeting-{self._meetings}-{rank}" for rank in range(self._ranks)]
        yield
        marks[self._rank].touch()
        limit = time.monotonic() + PATIENCE
        while not all(mark.exists() for mark in marks):
            if time.monotonic() > limit:
                raise TimeoutError("the other ranks do not measure")
            yield


def main() -> int:
    """Serve requests until one says stop."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path)
    parser.add_argument("--scratch", type=Path)
    parser.add_argument("--rank", type=int)
    parser.add_argument("--ranks", type=int)
    options = parser.parse_args()
    settle()
    with engine.open(options.data) as data:
        rank = Rank(data, options.scratch, options.rank, options.ranks)
        put(options.scratch / f"alone-ready-{options.rank}.json", None)
        number = 0
        while True:
            request = get(options.scratch / f"request-{number}.json", PATIENCE)
            if request["what"] == "stop":
                return 0
            if request["what"] == "profile":
                answer: Any = rank.profile(request["batch_size"], request["seconds"])
            else:
                answer = rank.measure(request["sizes"][options.rank], request["seconds"])
            put(options.scratch / f"alone-{number}-{options.rank}.json", answer)
            number += 1


if __name__ == "__main__":
    sys.exit(main())
