"""Progress for people, on rank 0: a live view in a terminal, elsewhere a plain line now and then.

The training thread only stores a few numbers at each step; a thread of the display's makes text of them.
"""

from __future__ import annotations

import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from engine.pace import Pace
from engine.view import DECISIONS, Decision, Renderer, Snapshot, plain_line
from engine.view_live import LiveView
from engine.view_terminal import find_terminal
from engine.watch import Board, Watch

if TYPE_CHECKING:
    from engine.session import Session

LINE_SECONDS = 10.0
"""seconds between plain lines"""


class Display:
    """Shows a run while `Trainer.fit` is at work; before and after that, only what it is given to say.

    Args:
        active: whether this rank shows anything.
        view: "auto": a live view where standard error leads to a terminal, else plain lines; "lines"; or "none".
        seconds: between plain lines; 0 for none.
    """

    def __init__(self, active: bool, view: str = "auto", seconds: float = LINE_SECONDS) -> None:
        self._active, self._mode, self._seconds = active, view, seconds
        self._board: Board | None = None
        self._shares: Callable[[], Sequence[int]] = tuple
        self._asked: Callable[[], object] = lambda: False
        self._live: LiveView | None = None
        self._lines: threading.Event | None = None
        """set when the plain lines are to end"""
        self._lock = threading.Lock()
        self._decisions: deque[Decision] = deque(maxlen=DECISIONS)
        self._pace = Pace()

    def watch(
        self,
        session: Session,
        watch: Watch,
        shares: Callable[[], Sequence[int]],
        asked_to_stop: Callable[[], object] = lambda: False,
    ) -> None:
        """Have the ranks shown too. Collective.

        Args:
            session: the ranks; their heartbeats carry the reports.
            watch: this rank's notes.
            shares: says how many rows of a full batch each rank has.
            asked_to_stop: whether the run is about to end.
        """
        hosts = session.comm.allgather(socket.gethostname())
        heartbeat = session.heartbeat
        if session.root:
            self._board = Board(watch, hosts)
            self._shares, self._asked = shares, asked_to_stop
            if heartbeat is not None:
                heartbeat.heard, heartbeat.ending = self._board.hear, self.close
        elif heartbeat is not None:
            heartbeat.report = lambda: watch.report().to_bytes()

    def say(self, text: str) -> None:
        """One line on standard output."""
        live = self._live
        if self._active and not (live is not None and live.say(text)):
            _print(text)

    def event(self, event: dict[str, Any]) -> None:
        """Take note of what the balancer did, from the events of metrics.jsonl."""
        if event["event"] == "shares":
            made = Decision(event["step"], event["reason"], event["predicted_gain"], event["changed"])
            if self._decisions and (self._decisions[-1] == made or not self._decisions[-1].changed):
                self._decisions.pop()  # a change is told once for every bucket, and of what was kept the last says all
            self._decisions.append(made)
        elif event["event"] == "gain":
            for place, decision in enumerate(self._decisions):
                if decision.changed and decision.step == event["decided_at"]:
                    self._decisions[place] = replace(decision, achieved_gain=event["achieved_gain"])

    def start_epoch(self, epoch: int, epochs: int, steps: int, done: int) -> None:
        """An epoch of `steps` steps begins, `done` of them done."""
        if not self._active:
            return
        self._pace.start_epoch(epoch, epochs, steps, done)
        self._open()

    def step(self, loss: float, rows: int) -> None:
        """One step more.

        Args:
            loss: mean over the global batch.
            rows: of it.
        """
        if self._active:
            self._pace.step(loss, rows)

    def end_epoch(self) -> None:
        """The epoch's steps are done; it is measured and saved now."""
        self._pace.end_epoch()

    def close(self) -> None:
        """Take the view away; lines go on to standard output. Any thread may call it."""
        with self._lock:
            live, lines = self._live, self._lines
            self._live = self._lines = None
        if lines is not None:
            lines.set()
        if live is not None:
            live.close()

    def _open(self) -> None:
        if self._live is not None or self._lines is not None or self._mode == "none":
            return
        terminal = find_terminal() if self._mode == "auto" else None
        if terminal is not None:
            renderer = Renderer(unicode=(sys.stderr.encoding or "").lower().startswith("utf"))
            self._live = LiveView(
                terminal, lambda columns, rows: renderer.lines(self._snapshot(), columns, rows), self._asked
            )
        elif self._seconds > 0:
            self._lines = threading.Event()
            threading.Thread(target=self._tell, args=(self._lines,), name="engine-lines", daemon=True).start()

    def _tell(self, ended: threading.Event) -> None:
        while not ended.wait(self._seconds):
            try:
                _print(plain_line(self._snapshot()))
            except OSError:  # nobody reads any more; the training thread will meet it
                return

    def _snapshot(self) -> Snapshot:
        now = self._pace.now(time.monotonic())
        ranks = self._board.figures(self._shares()) if self._board is not None else ()
        return replace(now, ranks=ranks, decisions=tuple(self._decisions))


def _print(text: str) -> None:
    # In one piece: two threads may print.
    print(text + "\n", end="", flush=True)
