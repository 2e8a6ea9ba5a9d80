"""`python -m engine.report`: one HTML page about a run, or about several side by side, from what they recorded."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from engine.command import run_alone
from engine.command_line import make_parser
from engine.errors import UsageError
from native.files import write_durably

PROGRAM = "engine.report"
NAME = "report.html"
DESCRIPTION = (
    "Write a page about a run, from its config.json and metrics.jsonl: how good the model is, how efficient the run "
    "was, what slowed it. Several runs are compared. The page is one file and needs no network; see docs/report.md."
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the page that the command line asks for; returns the exit status."""
    parser = make_parser("python -m engine.report", DESCRIPTION)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder that engine.train wrote (its --out)")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help=f"where to write the page (default: {NAME} in the RUN; with several runs it must be given)",
    )

    def work() -> None:
        options = parser.parse_args(arguments)
        runs = list(dict.fromkeys(options.runs))
        if options.out is None and len(runs) > 1:
            raise UsageError(f"{len(runs)} runs make one page, which belongs to none of them: name it with --out FILE")
        out = options.out or runs[0] / NAME
        write_report(runs, out)
        print(out)

    return run_alone(PROGRAM, work)


def write_report(runs: Sequence[Path], out: Path) -> None:
    """Write the page about one run or several.

    Args:
        runs: RUN folders.
        out: the file; replaced if there.

    Raises:
        UsageError: a run that cannot be read, or a file that cannot be written.
    """
    from engine.report_page import page
    from engine.report_record import read_record

    text = page([read_record(run) for run in runs])
    try:
        write_durably(out, text.encode())
    except OSError as error:
        raise UsageError(f"{out}: cannot be written ({error.strerror}); name another file with --out") from None


def write_report_or_warn(run: Path, say: Callable[[str], None]) -> None:
    """Write a run's page into its folder; where that fails, say so in one line: the run itself is as good as before."""
    try:
        write_report([run], run / NAME)
    except Exception as error:
        problem = " ".join(str(error).split()) or type(error).__name__
        say(f"warning: no {run / NAME}: {problem}; python -m engine.report {run} tries it again")


if __name__ == "__main__":
    sys.exit(main())
