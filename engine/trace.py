"""Records what every rank does in some steps; engine.trace_file makes one time line of it.

While it records, methods of the trainer's parts are wrapped, on these objects alone: nothing is paid before and after,
and the code that is timed knows nothing of it. On a GPU every slice ends with a synchronisation, so that it shows what
was computed in it; steps then take longer than untraced ones.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from engine.input import LocalBatch, Prefetcher
from engine.session import Session
from engine.trace_clock import Clock, Offset, alignments, measure_offsets
from engine.trace_file import WAIT, Mark, Row, Slice, write_trace

if TYPE_CHECKING:
    from engine.trainer import Trainer


class Recorder:
    """Slices of this rank, from wrapping to unwrapping.

    Args:
        now: the clock, in nanoseconds.
        device: on a GPU its work is waited for at the end of each slice.
    """

    def __init__(self, now: Callable[[], int], device: torch.device) -> None:
        self._clock, self._device = now, device
        self.slices: list[Slice] = []
        self._wrapped: list[tuple[Any, str, Any]] = []
        self.step = 0
        """that is under way"""

    def now(self) -> int:
        """The time, after all that was given to a GPU."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return self._clock()

    def add(self, name: str, start: int, **details: Any) -> None:
        """A slice that ends now."""
        self.slices.append(Slice(name, start, self.now(), self.step, details))

    def wrap(self, owner: Any, method: str, name: str, details: Callable[..., dict[str, Any]] = lambda *_: {}) -> None:
        """Have every call of a method be a slice.

        Args:
            details: makes what is told of it, from the arguments.
        """
        call = getattr(owner, method)

        def timed(*arguments: Any, **named: Any) -> Any:
            start = self.now()
            try:
                return call(*arguments, **named)
            finally:
                self.add(name, start, **details(*arguments))

        self.replace(owner, method, timed)

    def replace(self, owner: Any, method: str, function: Any) -> None:
        """Put a function in a method's place until `unwrap`."""
        self._wrapped.append((owner, method, vars(owner).get(method)))
        setattr(owner, method, function)

    def unwrap(self) -> None:
        """Leave everything as it was."""
        for owner, method, before in reversed(self._wrapped):
            if before is None:
                delattr(owner, method)
            else:
                setattr(owner, method, before)
        self._wrapped.clear()


class _Objective:
    """What backward starts from; its backward pass ends a micro-batch.

    Args:
        value: the tensor that it stands for.
        recorder: takes the slices.
        start: when the micro-batch began.
        rows: of it.
    """

    def __init__(self, value: Any, recorder: Recorder, start: int, rows: int) -> None:
        self._value, self._recorder, self._start, self._rows = value, recorder, start, rows

    def backward(self) -> None:
        """As the tensor's."""
        start = self._recorder.now()
        self._value.backward()
        self._recorder.add("backward", start)
        self._recorder.add("micro-batch", self._start, rows=self._rows)


def record(recorder: Recorder, trainer: Trainer, batches: Prefetcher) -> None:
    """Wrap everything that is to be seen of a trainer."""
    work, exchange, hooks = trainer._work, trainer._exchange, trainer.hooks
    forward = work.forward

    def micro_batch(batch: LocalBatch, part: slice, step: int) -> tuple[Any, Any, Any]:
        start = recorder.now()
        objective, loss, weight = forward(batch, part, step)
        recorder.add("forward", start)
        return _Objective(objective, recorder, start, part.stop - part.start), loss, weight

    recorder.wrap(trainer, "_step", "step")
    recorder.wrap(batches, "next", "input")
    recorder.wrap(work, "run", "compute", lambda batch, step: {"rows": batch.rows, "length": batch.bound})
    recorder.replace(work, "forward", micro_batch)
    recorder.wrap(exchange, "post", "post")
    recorder.wrap(exchange, "send_early", "early exchange")
    recorder.wrap(exchange, "sum_over_ranks", "exchange")
    recorder.wrap(exchange._reducer, "wait", WAIT)
    recorder.wrap(trainer, "_apply", "optimiser step")
    recorder.wrap(trainer, "_balance_step", "balance")
    recorder.wrap(trainer, "_end_epoch", "end of epoch")
    recorder.wrap(hooks, "validate", "validate")
    recorder.wrap(hooks, "save", "save")


class Trace:
    """Traces the steps that were asked for; one on every rank.

    Args:
        session: the ranks.
        out: RUN.
        steps: first and last step; None for none (Horovod's time line only).
        timeline: whether Horovod records its own as well, of the same steps, or of all.
        say: told where the files are, on rank 0.
        clock: of this rank.
    """

    def __init__(
        self,
        session: Session,
        out: Path,
        steps: tuple[int, int] | None,
        timeline: bool = False,
        say: Callable[[str], None] = lambda text: None,
        clock: Clock | None = None,
    ) -> None:
        self._session, self._out = session, out
        self._say = say if session.root else lambda text: None
        self._whole = steps is None
        self._first, self._last = steps or (1, 1 << 62)
        # Only rank 0's Horovod records one.
        self._timeline = out / "horovod-timeline.json" if timeline and session.root else None
        self._clock = clock or Clock.of_this_host(session.rank)
        self._recorder: Recorder | None = None
        self._marks: list[Mark] = []
        self._before: list[Offset] = []
        self._comm: Any = None
        self._running = self._done = False

    def before_step(self, trainer: Trainer, batches: Prefetcher) -> None:
        """Begin and end where that is due. Collective."""
        number = trainer.progress.total_steps + 1
        if self._running and number > self._last:
            self.finish()
        elif not self._running and self._first <= number <= self._last and not self._done:
            self._start(trainer, batches)
        if self._recorder is not None:
            self._recorder.step = number
        if self._done:
            trainer.hooks.trace = None

    def event(self, event: dict[str, Any]) -> None:
        """Mark what the balancer did, from the events of metrics.jsonl; on rank 0."""
        if self._recorder is None:
            return
        if event["event"] == "shares":
            what = "shares changed" if event["changed"] else "shares kept"
            self._marks.append(Mark(what, self._clock.now(), event))
        elif event["event"] == "gain":
            self._marks.append(Mark("gain told", self._clock.now(), event))

    def finish(self) -> None:
        """Write what was recorded, if it was not yet. Collective; training has come to an end together."""
        if self._running:
            self._running, self._done = False, True
            if self._timeline is not None:
                self._session.hvd.stop_timeline()
                self._say(f"{self._timeline}: Horovod's time line, for chrome://tracing")
            if self._recorder is not None:
                self._write(self._recorder)
                self._recorder = None
        elif not self._done and self._last < 1 << 62:
            self._say(f"warning: no step of --trace-steps {self._first}:{self._last} was made, so there is no trace")

    def _start(self, trainer: Trainer, batches: Prefetcher) -> None:
        self._running = True
        if self._timeline is not None:
            self._session.hvd.start_timeline(str(self._timeline))
        if self._whole:
            return
        self._first = trainer.progress.total_steps + 1
        self._comm = self._session.comm.Dup()
        self._before = measure_offsets(self._comm, self._clock)
        self._recorder = Recorder(self._clock.now, self._session.device)
        record(self._recorder, trainer, batches)

    def _write(self, recorder: Recorder) -> None:
        """Bring the ranks' slices together on rank 0."""
        recorder.unwrap()
        clocks = alignments(self._before, measure_offsets(self._comm, self._clock))
        device = str(self._session.device)
        rows = self._comm.gather((socket.gethostname(), device, recorder.slices), root=0)
        self._comm.Free()
        if rows is None:
            return
        last = max((one.step for one in recorder.slices), default=self._first)
        path = self._out / f"trace-{self._first}-{last}.json"
        named = [Row(host, place, slices, clock) for (host, place, slices), clock in zip(rows, clocks, strict=True)]
        try:
            write_trace(path, named, self._marks)
        except OSError as error:
            self._say(f"warning: {path}: cannot be written ({error.strerror}), the trace is lost; training goes on")
            return
        self._say(f"{path}: steps {self._first} to {last} of all ranks; open it in ui.perfetto.dev")
