"""From the plan to this rank's batches: read ahead of the trainer, across epoch borders, into reused buffers."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from engine.losses import classes_of
from engine.plan import GlobalBatch, Plan
from engine.shares import Table, as_table
from native.batch import Batch, BatchBuffer
from native.dataset import Dataset
from native.stream import READ_AHEAD as READ_AHEAD
from native.stream import BatchStream

_KNOWN_VIEWS = 16


@dataclass(frozen=True)
class LocalBatch:
    """This rank's slice of a global batch."""

    whole: GlobalBatch
    bound: int
    """padded length of the batch's bucket, tokens"""
    rows: int
    inputs: tuple[Any, ...]
    """arguments of the model; empty for 0 rows"""
    target: Any
    ready: torch.cuda.Event | None = None
    """on a GPU: recorded when the copies to it are done"""

    def hand_over(self) -> None:
        """Let the current stream of a GPU wait for the copies, before it computes on them."""
        if self.ready is None:
            return
        stream = torch.cuda.current_stream()
        stream.wait_event(self.ready)
        for value in (*self.inputs, self.target):
            if isinstance(value, Tensor):
                value.record_stream(stream)  # its memory is not given away while the computing stream uses it


class Source(Protocol):
    """Turns row numbers of a bucket into the model's inputs and the target."""

    def __call__(self, bucket: int, rows: np.ndarray) -> tuple[tuple[Any, ...], Any]:
        """Inputs and target for int64 row numbers, at least one."""


class ReviewSource:
    """Batches of a dataset as tensors: inputs (tokens int32 [n, L], lengths int32 [n]), target int64 [n].

    Args:
        data: the opened split.
        plan: where row numbers come from: made with layout=data.layout (fast, little padding) or rows=len(data).
        target_of: maps uint8 stars [n] to the target; by default 1 for 4 or 5 stars, else 0.
        device: where the tensors go; to a GPU they travel from pinned memory.
    """

    def __init__(
        self,
        data: Dataset,
        plan: Plan,
        target_of: Callable[[Tensor], Tensor] | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.data, self.plan, self.device = data, plan, torch.device(device)
        self._target_of = target_of or partial(classes_of, classes=2)
        self._views: dict[int, tuple[Batch, tuple[Tensor, ...]]] = {}
        self.by_bucket = plan.layout == tuple(data.layout)
        """whether the native stream can read the plan's batches"""
        if not self.by_bucket:
            _check_own_rows(plan, len(data))

    def __call__(self, bucket: int, rows: np.ndarray) -> tuple[tuple[Tensor, ...], Tensor]:
        return self.tensors(self.data.read_bucket(bucket, rows) if self.by_bucket else self.data.read(rows))

    def tensors(self, batch: Batch) -> tuple[tuple[Tensor, ...], Tensor]:
        """Inputs and target on the device; on a CPU the inputs share the batch's memory."""
        # A buffer gives the same Batch for the same shape: its tensors are made once, not for every step.
        known, views = self._views.get(id(batch), (None, ()))
        if known is not batch:
            views = tuple(torch.from_numpy(array) for array in (batch.tokens, batch.lengths, batch.stars))
            if len(self._views) > _KNOWN_VIEWS:
                self._views.clear()
            self._views[id(batch)] = batch, views
        if self.device.type != "cpu":
            views = tuple(view.to(self.device, non_blocking=True) for view in views)
        return views[:2], self._target_of(views[2])

    def buffers(self, count: int) -> list[BatchBuffer]:
        """Memory for batches of this plan, pinned where they travel to a GPU."""
        rows = min(self.plan.batch_size, max(shape.rows for shape in self.plan.layout))
        allocate = _pinned if self.device.type == "cuda" else np.empty
        return [BatchBuffer(rows, max(self.data.bounds), allocate) for _ in range(count)]


def _pinned(size: int, kind: type) -> np.ndarray:
    array: np.ndarray = torch.from_numpy(np.empty(size, kind)).pin_memory().numpy()
    return array


class MapStyleSource:
    """Batches of any map-style torch dataset whose items are (input..., target) tuples."""

    def __init__(self, dataset: Any, plan: Plan, device: torch.device | str = "cpu") -> None:
        _check_own_rows(plan, len(dataset))
        self._dataset, self._device = dataset, device

    def __call__(self, bucket: int, rows: np.ndarray) -> tuple[tuple[Any, ...], Any]:
        items = torch.utils.data.default_collate([self._dataset[int(row)] for row in rows])
        *inputs, target = (item.to(self._device) for item in items)
        return tuple(inputs), target


def _check_own_rows(plan: Plan, rows: int) -> None:
    if [shape.rows for shape in plan.layout] != [rows]:
        raise ValueError(
            f"the plan was not made for this data of {rows} rows, so it would name other rows; make it with "
            "Plan(rows=len(data)), or for a dataset of reviews with Plan(layout=data.layout)"
        )


def as_source(data: Any, plan: Plan, device: torch.device) -> Source:
    """A source for what users hold: a dataset of reviews, a map-style torch dataset, or a source already."""
    if isinstance(data, Dataset):
        return ReviewSource(data, plan, device=device)
    if hasattr(data, "__getitem__"):
        return MapStyleSource(data, plan, device)
    source: Source = data
    return source


class Reader(Protocol):
    """Reads this rank's parts of batches ahead of their use, in the order in which they are submitted."""

    def submit(self, epoch: int, step: int, shares: tuple[int, ...]) -> None:
        """Ask for this rank's part of a step's batch."""

    def take(self) -> LocalBatch:
        """The next batch; an error of reading is raised here."""

    def close(self) -> None:
        """End the reading; batches that wait are dropped."""


class NativeReader:
    """Batches of reviews through a native stream; copies to a GPU go one batch ahead, on a stream of their own."""

    def __init__(self, source: ReviewSource, rank: int, epochs: int) -> None:
        self._source, self._rank = source, rank
        self._batches = BatchStream(source.data, source.plan, epochs, source.buffers(READ_AHEAD + 2))
        self._stream = torch.cuda.Stream(source.device) if source.device.type == "cuda" else None
        self._staged: deque[LocalBatch] = deque()
        self._copies: deque[torch.cuda.Event | None] = deque()

    def submit(self, epoch: int, step: int, shares: tuple[int, ...]) -> None:
        """Ask for this rank's part of a step's batch."""
        # The buffer that is filled next has been copied from long ago: this makes sure of it.
        if len(self._copies) > 1 and (copied := self._copies.popleft()) is not None:
            copied.synchronize()
        begin = sum(shares[: self._rank])
        self._batches.submit(epoch, step, begin, begin + shares[self._rank])

    def take(self) -> LocalBatch:
        """The next batch; an error of reading is raised here."""
        batch = self._staged.popleft() if self._staged else self._stage()
        if self._stream is not None and self._batches.ready:
            self._staged.append(self._stage())
        return batch

    def close(self) -> None:
        """End the reading; batches that wait are dropped."""
        self._batches.close()

    def _stage(self) -> LocalBatch:
        taken = self._batches.take()
        whole = GlobalBatch(taken.bucket, taken.number, taken.whole_rows)
        rows, bound = len(taken.batch), taken.batch.tokens.shape[1]
        if not rows:
            self._copies.append(None)
            return LocalBatch(whole, bound, 0, (), None)
        if self._stream is None:
            return LocalBatch(whole, bound, rows, *self._source.tensors(taken.batch))
        with torch.cuda.stream(self._stream):
            inputs, target = self._source.tensors(taken.batch)
            ready = torch.cuda.Event()
            ready.record(self._stream)
        self._copies.append(ready)
        return LocalBatch(whole, bound, rows, inputs, target, ready)


class SourceReader:
    """Batches of any source, read by a thread."""

    def __init__(self, plan: Plan, source: Source, rank: int, device: torch.device | None) -> None:
        self._plan, self._source, self._rank = plan, source, rank
        self._stream = torch.cuda.Stream(device) if device is not None and device.type == "cuda" else None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="engine-input")
        self._waiting: deque[Future[LocalBatch]] = deque()

    def submit(self, epoch: int, step: int, shares: tuple[int, ...]) -> None:
        """Ask for this rank's part of a step's batch."""
        self._waiting.append(self._thread.submit(self._read, epoch, step, shares))

    def take(self) -> LocalBatch:
        """The next batch; an error of reading is raised here."""
        return self._waiting.popleft().result()

    def close(self) -> None:
        """End the thread; batches that wait are dropped."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _read(self, epoch: int, step: int, shares: tuple[int, ...]) -> LocalBatch:
        whole = self._plan.batch(epoch, step)
        bound = self._plan.layout[whole.bucket].bound
        part = self._plan.slices(whole.rows, shares)[self._rank]
        if part.start == part.stop:
            return LocalBatch(whole, bound, 0, (), None)
        rows = self._plan.rows(epoch, whole)[part]
        if self._stream is None:
            return LocalBatch(whole, bound, len(rows), *self._source(whole.bucket, rows))
        with torch.cuda.stream(self._stream):
            inputs, target = self._source(whole.bucket, rows)
            ready = torch.cuda.Event()
            ready.record(self._stream)
        return LocalBatch(whole, bound, len(rows), inputs, target, ready)


class Prefetcher:
    """This rank's batches in the plan's order, READ_AHEAD of them submitted before they are asked for.

    Args:
        plan: the global batches.
        source: reads rows.
        rank: whose slices.
        schedule: shares for the first batch, the second, ...; the last entry stays in force. Each is rows of a full
            batch per rank, or a table of them per bucket.
        epoch, step: where to begin (epoch from 0; step within the epoch).
        epochs: where to end.
        device: on a GPU the copies travel on a stream of their own, beside the computation.
    """

    def __init__(
        self,
        plan: Plan,
        source: Source,
        rank: int,
        schedule: Sequence[Sequence[int] | Table],
        epoch: int,
        step: int,
        epochs: int,
        device: torch.device | None = None,
    ) -> None:
        self._plan = plan
        *first, last = (as_table(shares, len(plan.layout)) for shares in schedule)
        self._scheduled = deque(first)
        self._table = last
        self._places = (
            (e, s) for e in range(epoch, epochs) for s in range(step if e == epoch else 0, plan.steps_per_epoch)
        )
        self._reader: Reader
        # A subclass with a __call__ of its own wants to be called.
        if isinstance(source, ReviewSource) and source.by_bucket and type(source).__call__ is ReviewSource.__call__:
            self._reader = NativeReader(source, rank, epochs)
        else:
            self._reader = SourceReader(plan, source, rank, device)
        self._waiting: deque[Table] = deque()
        self.table = self._table
        """shares of the batch that was taken last"""
        for _ in range(READ_AHEAD):
            self._submit()

    def set_shares(self, shares: Sequence[int] | Table) -> None:
        """Use new shares for every batch that has not been submitted yet: the same ones on every rank."""
        self._table = as_table(shares, len(self._plan.layout))

    def next(self) -> LocalBatch:
        """The next batch, in memory that holds until this is called again; an error of reading is raised here."""
        self._submit()
        self.table = self._waiting.popleft()
        return self._reader.take()

    def schedule(self) -> list[Table]:
        """Shares of the coming batches, as a new Prefetcher takes them to go on from here."""
        return [*self._waiting, *self._scheduled, self._table]

    @property
    def ahead(self) -> int:
        """Batches that have been submitted and not been taken: shares of theirs change no more."""
        return len(self._waiting)

    def close(self) -> None:
        """End the reading; batches read ahead are dropped."""
        self._reader.close()

    def _submit(self) -> None:
        place = next(self._places, None)
        if place is not None:
            table = self._scheduled.popleft() if self._scheduled else self._table
            self._waiting.append(table)
            self._reader.submit(*place, table[self._plan.batch(*place).bucket])
