"""`python -m engine.train`: parse, start, run."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from engine.command_line import parse_train_config
from engine.environment import prepare_environment
from engine.errors import UsageError

PROGRAM = "engine.train"


def main(arguments: Sequence[str] | None = None) -> int:
    """Train as the command line says; returns the exit status."""
    prepare_environment()
    from engine.command import report_error
    from engine.session import init, run_on_all_ranks

    try:
        config = parse_train_config(arguments)
        if config.horovod_timeline:
            os.environ["HOROVOD_TIMELINE"] = "DYNAMIC"  # read when Horovod starts: a time line may be begun later
        session = init(config.device, config.threads, config.rank_timeout, config.step_timeout)
    except UsageError as error:
        return report_error(PROGRAM, error)

    def work() -> None:
        from engine.run import Run

        Run(config, session).train()

    return run_on_all_ranks(PROGRAM, session, work)


if __name__ == "__main__":
    sys.exit(main())
