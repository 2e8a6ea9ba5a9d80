"""`python -m engine.sweep`: trainings with different options, one after the other on the ranks given, and a table.

A trial is a RUN of its own in SWEEP/trials; the same command goes on where it was cut off. Trials are judged on the
validation split; the test split is not opened.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engine.command_line import make_parser
from engine.config import TrainConfig
from engine.environment import prepare_environment
from engine.errors import TrainingError, UsageError

PROGRAM = "engine.sweep"


def _parser() -> Any:
    parser = make_parser(
        "python -m engine.sweep",
        "Train with every combination of some options, or with so many drawn at random, on as many ranks as the "
        "launcher starts, and tell which did best on the validation split. All options of engine.train may be given; "
        "they hold for every trial.",
    )
    add = parser.add_argument
    add("--out", required=True, metavar="SWEEP", help="folder of the sweep: trials/, sweep.json, sweep.png")
    add(
        "--try",
        dest="values",
        action="append",
        default=[],
        metavar="NAME=A,B,..",
        help="an option of engine.train and its values, or LOW..HIGH to draw from (on a logarithmic scale where both "
        "are above 0); again for each option",
    )
    add("--random", type=int, default=0, metavar="N", help="draw N settings; 0: every combination")
    add("--seeds", type=int, default=1, metavar="N", help="trainings of each setting: seeds --seed, --seed + 1, ..")
    add("--seed", type=int, default=7, metavar="S", help="first seed of the trainings, and seed of the draws")
    add(
        "--minutes",
        type=float,
        default=0.0,
        metavar="M",
        help="budget: no trial begins that would not be done by then, going by the longest one so far; 0: no limit",
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Sweep as the command line says; returns the exit status."""
    prepare_environment()
    from engine.command import report_error
    from engine.session import init, run_on_all_ranks
    from engine.sweep_space import make_trials, parse_values

    try:
        options, given = _parser().parse_known_args(arguments)
        if min(options.random, options.minutes, options.seed) < 0 or options.seeds < 1:
            raise UsageError("--random, --minutes and --seed must be at least 0, --seeds at least 1")
        seeds = range(options.seed, options.seed + options.seeds)
        values = [parse_values(text) for text in options.values]
        trials = make_trials(values, options.random, seeds, options.seed)
        folder = Path(options.out)
        plan = [(trial, trial.config(given, str(folder / "trials" / trial.name))) for trial in trials]
        first = plan[0][1]
        session = init(first.device, first.threads, first.rank_timeout, first.step_timeout)
    except UsageError as error:
        return report_error(PROGRAM, error)
    return run_on_all_ranks(PROGRAM, session, lambda: Sweep(folder, plan, options.minutes, session).run())


class Sweep:
    """Trials on all ranks, one after the other.

    Args:
        folder: of the sweep.
        plan: the trials and their configurations.
        minutes: budget; 0 for none.
        session: the ranks.
    """

    def __init__(self, folder: Path, plan: Sequence[tuple[Any, TrainConfig]], minutes: float, session: Any) -> None:
        self._folder, self._plan, self._seconds, self._session = folder, plan, minutes * 60, session
        self._longest = 0.0

    def run(self) -> None:
        """Train what is not done yet, within the budget; then write and print the table.

        Raises:
            UsageError: on every rank: unusable data, or a folder that cannot be written.
            Preempted: on every rank: a signal asked to stop.
        """
        from engine.sweep_table import Outcome, by_setting, read_outcome, table, to_json

        self._session.agree({"trials": [(trial.name, config.shared()) for trial, config in self._plan]})
        began = time.monotonic()
        outcomes: list[Outcome] = []
        for trial, config in self._plan:
            state = None
            if not self._done(trial, config):
                late = self._over(began)
                state = "left out: it would not be done within --minutes" if late else self._train(trial, config)
            outcomes.append(read_outcome(trial, Path(config.out), state))
        if not self._session.root:
            return
        lines = by_setting(outcomes)
        self._write(json.dumps(to_json(lines), indent=1) + "\n")
        from engine.optional_plot import plot_if_possible

        plot_if_possible(PROGRAM, "engine.sweep_plot", self._folder / "sweep.png", lines)
        print(table(lines), flush=True)

    def _done(self, trial: Any, config: TrainConfig) -> bool:
        """Whether an earlier call has finished the trial. Collective.

        Raises:
            UsageError: on every rank: it was another training.
        """
        from engine.sweep_table import read_outcome

        done, problem = False, None
        if self._session.root:
            folder = Path(config.out)
            outcome = read_outcome(trial, folder)
            done = outcome.state == "finished" and (outcome.epochs >= config.epochs or config.patience > 0)
            try:
                different = config.differences(json.loads((folder / "config.json").read_text())) if done else []
            except (OSError, ValueError, AttributeError):
                done, different = False, []
            if different:
                problem = UsageError(
                    f"{folder}: was trained with other options ({'; '.join(different)}); name another --out"
                )
        self._session.together(problem)
        return bool(self._session.comm.bcast(done, root=0))

    def _over(self, began: float) -> bool:
        """Whether another trial would end after the budget; rank 0's clock decides. Collective."""
        over = self._seconds and time.monotonic() - began + self._longest > self._seconds
        return bool(self._session.comm.bcast(over, root=0))

    def _train(self, trial: Any, config: TrainConfig) -> str | None:
        """Train a trial to its end; what is known of it that its files do not tell."""
        from engine.run import Run

        began = time.monotonic()
        if self._session.root:
            print(f"{PROGRAM}: trial {trial.number} of {len(self._plan)}: {trial.name}", file=sys.stderr, flush=True)
        try:
            run = Run(config, self._session)
            try:
                run.train()
            finally:
                run.close()
            run.check_stopped()
        except TrainingError as error:
            return f"failed: {error}"
        self._longest = max(self._longest, time.monotonic() - began)
        return None

    def _write(self, text: str) -> None:
        from native.files import write_durably

        path = self._folder / "sweep.json"
        try:
            write_durably(path, text.encode())
        except OSError as error:
            raise TrainingError(
                f"{path}: could not be written ({error.strerror}); the trials stand beside it"
            ) from None


if __name__ == "__main__":
    sys.exit(main())
