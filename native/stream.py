"""A plan's batches, read ahead of whoever computes on them, into a ring of reused buffers."""

from __future__ import annotations

import atexit
import os
import threading
import weakref
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

from native.batch import Batch, BatchBuffer
from native.format import BucketShape
from native.order import BatchOrder
from native.producer import BatchProducer
from native.reader import ChunkFault

if TYPE_CHECKING:
    from native.dataset import Dataset

READ_AHEAD = 2
"""batches that a trainer asks for ahead; small batches read by themselves have larger rings, see _make_ring"""


class BatchPlan(Protocol):
    """What a stream needs to know of a plan; engine.Plan is one."""

    layout: tuple[BucketShape, ...]
    batch_size: int

    @property
    def order(self) -> BatchOrder:
        """The order of rows."""

    def make_order(self) -> BatchOrder:
        """The same order as an object of its own, for another thread."""


class Taken(NamedTuple):
    """A batch, and what it is part of."""

    bucket: int
    number: int
    """the batch's number k within its bucket"""
    whole_rows: int
    """rows of the global batch"""
    batch: Batch


class BatchStream:
    """Parts of a plan's batches in the order in which they were submitted; a thread reads them meanwhile.

    For one thread at a time. Works in a forked child too, where it goes on with a thread of its own. Close it, or use
    it as a context manager; it ends when nobody holds it any more, with its dataset, and with the interpreter.

    Args:
        data: the opened split.
        plan: made for its layout.
        epochs: where reading will end at the latest: nothing is decoded ahead for an epoch from this one on.
        buffers: at least 3, each with room for the largest part that is submitted; see `ahead`. By default 4 of large
            batches, up to 16 of small ones.

    Raises:
        ValueError: a plan for other data.
        DatasetError: the split is closed.
    """

    _open = False

    def __init__(
        self, data: Dataset, plan: BatchPlan, epochs: int, buffers: Sequence[BatchBuffer] | None = None
    ) -> None:
        if plan.layout != tuple(data.layout):
            raise ValueError("the plan was made for other data; make it with Plan(layout=data.layout, ...)")
        self._data, self._plan, self._epochs = data, plan, epochs
        self._buffers = list(buffers or _make_ring(data, plan))
        if len(self._buffers) < 3:
            raise ValueError("at least 3 buffers are needed: one in hand, one being filled, one waiting")
        self.ahead = len(self._buffers) - 2
        """batches that may wait while one is in hand and the next one is being submitted"""
        self._pending: deque[tuple[int, int, int, int]] = deque()
        self._start()

    @property
    def waiting(self) -> int:
        """Batches submitted and not yet taken."""
        return len(self._pending)

    @property
    def ready(self) -> bool:
        """Whether `take` would not wait."""
        return bool(self._pending) and self._process == os.getpid() and bool(self._producer.ready())

    @property
    def chunks_decoded(self) -> int:
        """Chunks read and decoded so far."""
        return int(self._producer.reader.chunks_decoded)

    @property
    def bytes_decoded(self) -> int:
        """Their decoded tokens in bytes."""
        return int(self._producer.reader.bytes_decoded)

    @property
    def resident_bytes(self) -> int:
        """Bytes of memory that decoded chunks take now."""
        return int(self._producer.reader.resident_bytes())

    def submit(self, epoch: int, step: int, begin: int, end: int) -> None:
        """Ask for rows begin .. end, of batch_size, of a step's batch; a short batch is cut in proportion."""
        self._adopt()
        self._require_open()
        self._producer.submit(epoch, step, begin, end)
        self._pending.append((epoch, step, begin, end))

    def take(self) -> Taken:
        """The next batch; its buffer is filled again by the len(buffers)-th submit after its own.

        Raises:
            DatasetError: damaged data, or the split was closed.
            ValueError: nothing was submitted, or the stream was closed.
        """
        self._adopt()
        self._require_open()
        if not self._pending:
            raise ValueError("no batch was submitted that is still to be taken")
        try:
            buffer, bucket, number, whole_rows, rows, problem = self._producer.take()
        except ValueError:
            self._require_open()  # closed meanwhile by another thread
            raise
        self._pending.popleft()
        if isinstance(problem, ChunkFault):
            raise self._data.parts.explain(problem)
        if problem is not None:
            raise problem
        batch = self._buffers[buffer].view(rows, self._data.bounds[bucket])
        return Taken(bucket, number, whole_rows, batch)

    def close(self) -> None:
        """End the thread; batches that wait are dropped."""
        self._open = False
        if self._process == os.getpid():
            self._producer.stop()
            if self._thread is not threading.current_thread():
                self._thread.join()

    def __enter__(self) -> BatchStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _require_open(self) -> None:
        if not self._open:
            raise ValueError("the stream is closed") if self._data.is_open else self._data.closed_error()

    def _start(self) -> None:
        order = self._plan.make_order()
        # The windows of a batch (as a rule one), the next one, and a chunk on either side.
        spans = [-(-self._plan.batch_size // (width * self._data.chunk_rows)) for width in order.widths]
        slots = [(span + 1) * width + 2 for span, width in zip(spans, order.widths, strict=True)]
        arrays = [buffer.arrays for buffer in self._buffers]
        self._producer = BatchProducer(self._data.make_reader(slots), order, arrays, self._epochs)
        self._process, self._open = os.getpid(), True
        self._thread = threading.Thread(target=self._producer.run, name="batch-producer", daemon=True)
        self._thread.start()
        # No join here: this may run on any thread, in the middle of anything. The thread holds what it works on.
        self._finish = weakref.finalize(self, _stop, self._producer, self._process)
        self._data.streams.add(self)
        _STREAMS.add(self)

    def _adopt(self) -> None:
        """In a forked child, which has no thread yet and whose locks may be held by nobody: start anew."""
        if self._process == os.getpid() or not self._open:
            return
        self._finish.detach()
        # The batch in hand keeps its memory.
        self._buffers = [BatchBuffer(len(buffer.arrays[1]), max(self._data.bounds)) for buffer in self._buffers]
        self._start()
        for request in self._pending:
            self._producer.submit(*request)


def _make_ring(data: Dataset, plan: BatchPlan) -> list[BatchBuffer]:
    rows = min(plan.batch_size, max(shape.rows for shape in plan.layout))
    ahead = max(READ_AHEAD, min(14, 4096 // rows))
    return [BatchBuffer(rows, max(data.bounds)) for _ in range(ahead + 2)]


def _stop(producer: BatchProducer, process: int) -> None:
    if process == os.getpid():
        producer.stop()


_STREAMS: weakref.WeakSet[BatchStream] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    for stream in list(_STREAMS):
        stream.close()
