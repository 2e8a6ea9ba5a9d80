"""Whether a job that has ended is started again, and in which words that is told. Pure."""

from __future__ import annotations

import signal
from dataclasses import dataclass

WRONG_USAGE = 2
PREEMPTED = (128 + signal.SIGTERM, 128 + signal.SIGUSR1)
"""a job that was asked to end has saved and ended"""
STUCK = 2
"""restarts in a row without a later checkpoint after which another one is pointless"""
MOST_PAUSE = 30.0


@dataclass(frozen=True)
class Outcome:
    """How a job ended."""

    status: int
    """as a shell tells it: 128 + the signal for one that a signal ended"""
    seconds: float
    step: int | None
    """step of RUN's last checkpoint now; -1: none; None: not known"""
    end: str | None = None
    """status of the "end" event that the job has written to RUN/metrics.jsonl"""
    stopped_by: int | None = None
    """the signal by which the job was asked to end"""


@dataclass(frozen=True)
class Decision:
    """What to do after a job has ended."""

    restart: bool
    status: int
    """exit status where there is no restart"""
    text: str
    pause: float = 0.0
    """seconds before the restart"""


class Restarts:
    """Counts restarts and the progress that they make.

    Args:
        most: restarts allowed.
        step: step of RUN's last checkpoint before the first start, as in Outcome.
    """

    def __init__(self, most: int, step: int | None) -> None:
        self._most, self._furthest = most, -1 if step is None else step
        self.used = self._stuck = 0

    def after(self, outcome: Outcome) -> Decision:
        """What to do now."""
        what = _describe(outcome)
        if outcome.status == 0 or outcome.end == "finished":
            return Decision(False, 0, f"finished after {_counted(self.used, 'restart')}")
        preempted = outcome.status in PREEMPTED or outcome.end == "preempted"
        if outcome.stopped_by is not None:
            # mpirun was sent SIGUSR1 in place of SIGTERM (engine.processes): the status tells which one came.
            status = 128 + outcome.stopped_by if preempted else outcome.status
            return Decision(False, status, f"{what}, as {_signal_name(outcome.stopped_by)} asked; not restarted")
        if outcome.status == WRONG_USAGE:
            return Decision(
                False, WRONG_USAGE, f"{what}: wrong usage or unusable input, told above; no restart would mend it"
            )
        if preempted:
            status = outcome.status if outcome.status in PREEMPTED else PREEMPTED[0]
            return Decision(
                False, status, f"{what}: it was asked to end, and saved; not restarted, the same command goes on"
            )
        return self._after_failure(outcome, what)

    def _after_failure(self, outcome: Outcome, what: str) -> Decision:
        if outcome.step is not None and outcome.step > self._furthest:
            self._furthest, self._stuck = outcome.step, 0
        elif self.used:
            self._stuck += 1
        if outcome.step is not None and self._stuck >= STUCK:
            return Decision(
                False,
                outcome.status,
                f"{what}; {self._stuck} restarts in a row came no further: giving up; mend what the job reports above",
            )
        if self.used >= self._most:
            return Decision(
                False,
                outcome.status,
                f"{what}; giving up after {_counted(self.used, 'restart')}, the most that --max-restarts allows; "
                "the same command goes on from the last checkpoint",
            )
        self.used += 1
        pause = min(MOST_PAUSE, 2.0**self._stuck)
        return Decision(True, outcome.status, f"{what}; restart {self.used} of {self._most} in {pause:.0f} s", pause)


def _describe(outcome: Outcome) -> str:
    name = f" ({_signal_name(outcome.status - 128)})" if outcome.status > 128 else ""
    place = {None: "", -1: ", no checkpoint yet"}.get(outcome.step, f", last checkpoint at step {outcome.step}")
    return f"the job ended with status {outcome.status}{name} after {outcome.seconds:.0f} s{place}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _counted(number: int, what: str) -> str:
    return f"{number or 'no'} {what}{'' if number == 1 else 's'}"
