"""The start-up profile: what a batch costs this rank, for batches of 8, 16, 32, ... rows, with nothing exchanged.

It tells the fixed cost of a batch from the cost of a row, which training itself shows only once shares have changed,
and at which size of a micro-batch this rank is fastest per row.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from torch import nn

from engine.compute import LocalWork, out_of_memory
from engine.input import LocalBatch, Source
from engine.plan import Plan
from engine.speed import ProfilePoint

SECONDS = 1.5
"""for the profile of one length; the last batch may go beyond"""
SMALLEST = 8
MOST_ROWS = 1024
AGAIN = 1.25
"""a size that takes so much longer per row than a smaller one is timed again before that is believed"""
NEARLY = 1.03
"""the largest micro-batch within this of the best time per row is taken: larger ones have less overhead around them"""


def profile(
    work: LocalWork, model: nn.Module, plan: Plan, source: Source, device: torch.device, sizes: Sequence[int] = ()
) -> list[ProfilePoint]:
    """Time forward and backward on batches of the plan's first rows, in its costliest bucket and its shortest full one.

    Weights and buffers of the model stay as they are; what the gradients hold afterwards means nothing.

    Args:
        sizes: rows of the batches; by default powers of two up to the batch size.
    """
    buffers = [buffer.clone() for buffer in model.buffers()]
    training = model.training
    model.train()
    found: list[ProfilePoint] = []
    for bucket in _buckets(plan):
        found += _profile_bucket(work, plan, source, device, bucket, sizes)
    model.train(training)
    with torch.no_grad():
        for buffer, old in zip(model.buffers(), buffers, strict=True):
            buffer.copy_(old)
    return found


def best_micro_steps(points: Sequence[ProfilePoint]) -> int:
    """Padded timesteps of the micro-batch that is fastest per row, 0 where the profile says nothing.

    The costliest bucket decides: its points come first.
    """
    mine = [point for point in points if point.bound == points[0].bound] if points else []
    if len(mine) < 2:
        return 0
    best = min(point.seconds / point.rows for point in mine)
    largest = max((point for point in mine if point.seconds / point.rows <= best * NEARLY), key=lambda p: p.rows)
    return largest.rows * largest.bound


def _buckets(plan: Plan) -> list[int]:
    """The bucket with most padded timesteps, and another, as short as possible, that holds a tenth of the rows."""
    layout = plan.layout
    costliest = max(range(len(layout)), key=lambda bucket: layout[bucket].rows * layout[bucket].bound)
    total = sum(shape.rows for shape in layout)
    others = [bucket for bucket, shape in enumerate(layout) if bucket != costliest and shape.rows * 10 >= total]
    return [costliest, *others[:1]]


def _profile_bucket(
    work: LocalWork, plan: Plan, source: Source, device: torch.device, bucket: int, sizes: Sequence[int]
) -> list[ProfilePoint]:
    step = next((s for s, batch in enumerate(plan.epoch(0)) if batch.bucket == bucket), None)
    if step is None:
        return []
    whole = plan.batch(0, step)
    rows = plan.rows(0, whole)
    bound = plan.layout[bucket].bound
    points: list[ProfilePoint] = []
    began, size = time.perf_counter(), SMALLEST
    for size in sizes or [SMALLEST << power for power in range(16)]:
        if size > min(len(rows), MOST_ROWS) and points:
            break
        size = min(size, len(rows))
        inputs, target = source(bucket, rows[:size])
        batch = LocalBatch(whole, bound, size, inputs, target)
        try:
            seconds = _mean_seconds(work, batch, device)
            if points and seconds / size > AGAIN * min(point.seconds / point.rows for point in points):
                seconds = min(seconds, _mean_seconds(work, batch, device))
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            break  # the sizes so far are what fits
        points.append(ProfilePoint(bound, size, seconds))
        # The next size takes about twice as long.
        if time.perf_counter() - began + 6 * points[-1].seconds > SECONDS:
            break
    return points


def _mean_seconds(work: LocalWork, batch: LocalBatch, device: torch.device) -> float:
    """Of two passes, after one to warm up."""
    seconds = [_seconds(work, batch, device) for _ in range(3)]
    return sum(seconds[1:]) / 2


def _seconds(work: LocalWork, batch: LocalBatch, device: torch.device) -> float:
    """One forward and backward pass."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    objective, _, _ = work.forward(batch, slice(0, batch.rows), 0)
    objective.backward()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start
