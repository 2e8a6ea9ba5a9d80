"""`python -m engine.cost`: time and money of a training on every mix of machines, and what balancing saves."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from engine.command import run_alone
from engine.command_line import make_parser
from engine.cost_check import check, describe_check
from engine.cost_inputs import question_of
from engine.cost_machines import read_catalogue
from engine.cost_mixes import predict
from engine.cost_table import as_json, describe
from engine.optional_plot import plot_if_possible

PROGRAM = "engine.cost"
DESCRIPTION = (
    "Time and cost of a training on mixes of machines, by an even split and by balanced shares, the exchange between "
    "machines included; which of them no other beats in both; what balancing saves. Without --rows: the reference "
    "training of the machines' file, in its seconds. docs/cost.md says what is modelled, and how far off it is."
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Answer what the command line asks; returns the exit status."""
    parser = _parser()

    def work() -> None:
        options = parser.parse_args(arguments)
        if options.check:
            figures = check(read_catalogue(options.machines or ()))
            print(json.dumps(figures) if options.json else describe_check(figures))
            return
        question = question_of(options)
        outcomes = [predict(mix, question.machines, question.training) for mix in question.mixes]
        if options.json:
            print(json.dumps(as_json(question, outcomes, options.budget, options.deadline)))
        else:
            print(describe(question, outcomes, options.show, options.budget, options.deadline))
        if options.plot:
            plot_if_possible(PROGRAM, "engine.cost_plot", options.plot, outcomes, question.notes[0])

    return run_alone(PROGRAM, work)


def _parser() -> argparse.ArgumentParser:
    parser = make_parser("python -m engine.cost", DESCRIPTION)
    machines = parser.add_argument_group("machines").add_argument
    machines(
        "--machines",
        type=Path,
        action="append",
        metavar="FILE.toml",
        help="more machines, prices and measured runs, as in engine/machines.toml; may be repeated",
    )
    machines(
        "--rows-per-second", action="append", metavar="NAME=V", help="of all GPUs of such a machine; may be repeated"
    )
    machines(
        "--metrics",
        action="append",
        metavar="NAME=RUN/metrics.jsonl[:RANK,..]",
        help="the same from a run on one such machine, or from those ranks of a run on several; may be repeated",
    )
    machines("--price", action="append", metavar="NAME=V", help="$ per hour of such a machine; may be repeated")
    mixes = parser.add_argument_group("mixes").add_argument
    mixes("--most", type=int, metavar="N", help="machines in a mix at most (default: 4)")
    mixes("--among", metavar="NAME,..", help="only mixes of these")
    mixes("--mix", action="append", metavar="NAME:COUNT,..", help="only this mix; may be repeated")
    job = parser.add_argument_group("training").add_argument
    job("--rows", type=int, metavar="N", help="of an epoch (with --metrics by default the run's)")
    job("--epochs", type=float, metavar="N", help="(default: 1; of the reference: its own)")
    job(
        "--batch-size",
        type=int,
        metavar="B",
        help="rows of a global batch, the same on every mix (default: the run's, or 512)",
    )
    job("--batch-per-gpu", type=int, metavar="B", help="in its place: rows of each GPU, so more GPUs take fewer steps")
    network = parser.add_argument_group("network between machines").add_argument
    network(
        "--bandwidth", type=float, metavar="GBIT", help="Gbit/s (default: each machine's network_gbit, or no limit)"
    )
    network("--latency", type=float, metavar="US", help="microseconds per message (default: 0)")
    network("--gradient-bytes", type=float, metavar="BYTES", help="that a step sums over the ranks (default: 4.1e6)")
    network("--hidden", type=float, metavar="PART", help="of the exchange, hidden behind compute, 0 to 1 (default: 0)")
    what = parser.add_argument_group("output").add_argument
    what("--budget", type=float, metavar="DOLLARS", help="name the fastest mix for at most so much")
    what("--deadline", type=float, metavar="HOURS", help="name the cheapest mix that is done by then")
    what("--show", type=int, default=40, metavar="N", help="mixes in the table at most, those on the front first")
    what("--plot", type=Path, metavar="FILE.png", help="draw time against money (needs matplotlib)")
    what("--json", action="store_true", help="one JSON object on the last line")
    what("--check", action="store_true", help="predicted against measured, of the runs in the machines' files, alone")
    return parser


if __name__ == "__main__":
    sys.exit(main())
