"""The errors that a user can act on; each becomes one line, never a traceback."""

from __future__ import annotations


class UsageError(ValueError):
    """Wrong usage or unusable input: exit status 2. The message names the option or file, the cause and the cure."""


class TrainingError(RuntimeError):
    """A failure during the run that all ranks meet together: exit status 1."""


class Preempted(RuntimeError):
    """A signal asked the run to stop: all ranks have saved and end together, with status 128 + its number."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.status = 128 + signal_number


class RankError(RuntimeError):
    """A failure that one rank meets alone: exit status 1, and the other ranks are ended."""


class CheckpointError(UsageError):
    """A checkpoint that is missing, damaged, or does not belong to this run."""
