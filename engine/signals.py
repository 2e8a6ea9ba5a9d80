"""Signals that ask a run to stop: it saves at the next step's end, on all ranks together, and ends.

SIGTERM and SIGUSR1 are what Slurm, Kubernetes and spot instances send before they take a machine away. The exit status
is 128 + the signal's number, as of a process that the signal had ended: these launchers take it for "try again".

SIGCONT asks for a checkpoint only. It comes when a job that was suspended goes on, and it is the first thing that
mpirun sends when it is to end: SIGTERM follows a second later, and SIGKILL another second later.
"""

from __future__ import annotations

import signal
import time
from types import FrameType

from engine.heartbeat import Heartbeat

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class StopSignals:
    """Notes the first of these signals that comes to this process.

    Args:
        heartbeat: ends this process when the ranks have not come to an end together within its timeout.
    """

    def __init__(self, heartbeat: Heartbeat | None) -> None:
        self._heartbeat = heartbeat
        self.number = 0
        """of the signal that came; 0 for none"""
        self._continued = False
        for number in SIGNALS:
            signal.signal(number, self._note)
        signal.signal(signal.SIGCONT, self._note_continued)

    def take_continued(self) -> bool:
        """Whether SIGCONT has come since the last call."""
        continued, self._continued = self._continued, False
        return continued

    def _note_continued(self, number: int, frame: FrameType | None) -> None:
        self._continued = True

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.number = self.number or number
        if self._heartbeat is not None and self._heartbeat.leave_at is None:
            self._heartbeat.leave_at = time.monotonic() + self._heartbeat.timeout
