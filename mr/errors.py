"""What can go wrong, by exit status; every message is one line."""


class UsageError(Exception):
    """Wrong usage or unusable input, exit status 2: names the file or option, what is wrong and what to do."""


class RunError(Exception):
    """A failure during the run, exit status 1."""


class TooManyMalformed(UsageError):
    """More lines are malformed than may be: what was done holds for a call that lets them pass."""
