"""`python -m engine.simulate`: how long an epoch takes on ranks of your description, by who chooses the shares."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from engine.command import run_alone
from engine.command_line import comma_separated, make_parser
from engine.errors import UsageError
from engine.optional_plot import plot_if_possible
from engine.simulation import POLICIES, Run, Scenario, simulate
from engine.simulation_inputs import scenario_of

PROGRAM = "engine.simulate"
DESCRIPTION = (
    "Simulate training on uneven ranks with the engine's own plan and balancer: the shares even, balanced at every "
    "epoch (epoch), also inside it (auto), and by the true speeds (oracle). docs/simulate.md says what is modelled."
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Simulate as the command line says; returns the exit status."""
    parser = _parser()

    def work() -> None:
        options = parser.parse_args(arguments)
        if options.original and options.check:
            raise UsageError("--original and --check are two different things: leave one out")
        if options.original or options.check:
            figures, text = _original() if options.original else _check(options.check)
            print(json.dumps(figures) if options.json else text)
            return
        policies = options.policies.split(",")
        if not set(policies) <= set(POLICIES):
            raise UsageError(f"--policies {options.policies!r}: take some of {','.join(POLICIES)}")
        scenario, notes = scenario_of(options)
        runs = [simulate(scenario, name) for name in policies]
        print(json.dumps(as_json(scenario, runs)) if options.json else describe(scenario, runs, notes))
        if options.plot:
            plot_if_possible(PROGRAM, "engine.simulation_plot", options.plot, scenario, runs)

    return run_alone(PROGRAM, work)


def _parser() -> argparse.ArgumentParser:
    parser = make_parser("python -m engine.simulate", DESCRIPTION)
    _add_ranks(parser.add_argument_group("ranks").add_argument)
    network = parser.add_argument_group("network").add_argument
    network("--bandwidth", type=float, default=0.0, metavar="GBIT", help="Gbit/s per rank; 0: no limit")
    network("--latency", type=float, default=0.0, metavar="US", help="microseconds per message")
    network("--gradient-bytes", type=float, default=4.1e6, metavar="BYTES", help="that a step sums over the ranks")
    network("--hidden", type=float, default=0.0, metavar="PART", help="of the exchange, hidden behind compute, 0 to 1")
    network("--step-seconds", type=float, default=0.0, metavar="S", help="of a step outside compute and exchange")
    job = parser.add_argument_group("job").add_argument
    job("--batch-size", type=int, metavar="B", help="rows of a global batch (default: 512)")
    job("--rows", type=int, metavar="N", help="of an epoch")
    job("--steps", type=int, metavar="N", help="of an epoch, in place of --rows (default: 1000)")
    job("--epochs", type=int, default=2, metavar="N", help="to simulate")
    job(
        "--lengths", default="100", metavar="L[:PART],..", help="padded lengths of the rows, each with its part of them"
    )
    job("--balance-every", type=int, default=50, metavar="STEPS", help="window of auto (--rebalance-every)")
    job("--checkpoint-every", type=int, default=0, metavar="STEPS", help="between checkpoints inside an epoch")
    job("--checkpoint-minutes", type=float, default=10.0, metavar="M", help="between checkpoints inside an epoch")
    job("--restart-seconds", type=float, default=60.0, metavar="S", help="from a rank's death to the next step")
    job("--seed", type=int, default=1, metavar="S", help="of the noise and the order of batches")
    what = parser.add_argument_group("output").add_argument
    what("--policies", default=",".join(POLICIES), metavar="A,B,..", help="to compare")
    what("--plot", type=Path, metavar="FILE.png", help="draw step times and shares (needs matplotlib)")
    what("--json", action="store_true", help="one JSON object on the last line")
    what("--original", action="store_true", help="the original project's table from its single GPUs' times, alone")
    what("--check", type=Path, metavar="balance.json", help="predicted against measured, from benchmarks.balance")
    return parser


def _add_ranks(add: Callable[..., Any]) -> None:
    numbers = comma_separated(float)
    add("--ranks", type=int, metavar="N", help="their number (without --speeds 4 of them, one slower)")
    add(
        "--speeds",
        type=numbers,
        default=(),
        metavar="A,B,..",
        help="of each rank, relative (1,1,1,0.56); fewer than --ranks are repeated in turn",
    )
    add("--rows-per-second", type=float, metavar="V", help="of a rank of speed 1 on the longest rows (default: 1000)")
    add("--fixed", type=numbers, default=(), metavar="S,..", help="seconds of a step whatever its rows, per rank")
    add("--per-time-step", type=float, default=0.0, metavar="S", help="seconds of a time step whatever its rows")
    add("--noise", type=float, default=0.02, metavar="SIGMA", help="relative scatter of a rank's step")
    add(
        "--throttle",
        action="append",
        metavar="RANK:FACTOR:FROM[:TO]",
        help="a rank runs at FACTOR times its speed from step FROM to step TO or the end; may be repeated",
    )
    add(
        "--fail",
        action="append",
        metavar="RANK:STEP",
        help="a rank dies in a step, and the others go on from the last checkpoint; may be repeated",
    )
    add("--rank-caps", type=comma_separated(int), default=(), metavar="A,B,..", help="most rows per rank, 0 for no cap")
    add("--metrics", type=Path, metavar="RUN/metrics.jsonl", help="take ranks, speeds and rows from a real run")
    add(
        "--add-speeds",
        type=numbers,
        default=(),
        metavar="A,B,..",
        help="with --metrics: more ranks, of so many times the speed of the run's fastest",
    )


def as_json(scenario: Scenario, runs: Sequence[Run]) -> dict[str, Any]:
    """The figures of all runs; without the single steps."""
    left_out = ("step_seconds", "shares", "events", "policy")
    policies = {}
    for run in runs:
        figures = {name: value for name, value in vars(run).items() if name not in left_out}
        last = run.shares[-1][1]
        shares = [None if rows != rows else round(float(rows), 2) for rows in last] if len(last) <= 64 else None
        policies[run.policy] = figures | {"lost": [asdict(one) for one in run.lost], "last_shares": shares}
    return {
        "ranks": scenario.hardware.ranks,
        "batch_size": scenario.plan.batch_size,
        "steps_per_epoch": scenario.plan.steps_per_epoch,
        "epochs": scenario.epochs,
        "policies": policies,
    }


def describe(scenario: Scenario, runs: Sequence[Run], notes: Sequence[str] = ()) -> str:
    """The runs as a table for people."""
    plan, hardware = scenario.plan, scenario.hardware
    exchange = hardware.network.seconds(hardware.ranks)
    lines = [
        *notes,
        f"{hardware.ranks:,} ranks, batches of {plan.batch_size:,} rows, {plan.steps_per_epoch:,} steps an epoch, "
        f"{scenario.epochs} epochs; {exchange * 1000:.1f} ms a step outside compute",
        "",
        f"{'':8}{'epoch, s':>12}{'last one':>12}{'rows/s':>12}{'E':>8} ={'batch':>7} x {'balance':>7} x {'exposure':>8}"
        f"{'mean/max':>10}{'changes':>9}{'ms a look':>11}",
    ]
    for run in runs:
        look = f"{run.controller_seconds / run.looks * 1000:.1f}" if run.looks else "-"
        lines.append(
            f"{run.policy:8}{run.seconds / scenario.epochs:12,.1f}{run.epoch_seconds[-1]:12,.1f}"
            f"{run.rows / run.seconds:12,.0f}{run.E:8.3f} ={run.batch_size:7.3f} x {run.balance:7.3f} x "
            f"{run.exposure:8.3f}{run.mean_over_max:10.3f}{run.changes:9}{look:>11}"
        )
    lines += ["", *_remarks(runs)]
    return "\n".join(lines).rstrip()


def _remarks(runs: Sequence[Run]) -> list[str]:
    """What the table does not show: shares in the end, what deaths of ranks cost."""
    lines = []
    for run in runs:
        last = run.shares[-1][1]
        if len(last) <= 16:
            shares = ":".join("-" if rows != rows else f"{rows:.0f}" for rows in last)
            lines.append(f"{run.policy:8}shares in the end {shares}")
        for lost in run.lost:
            lines.append(
                f"{run.policy:8}rank {lost.rank} died in step {lost.step}: {lost.steps} steps ({lost.seconds:.1f} s) "
                f"were done again, {lost.restart_seconds:.0f} s went into the restart"
            )
    return lines


def _original() -> tuple[dict[str, Any], str]:
    from engine.simulation_original import describe_original, original

    figures = original()
    return figures, describe_original(figures)


def _check(path: Path) -> tuple[dict[str, Any], str]:
    from engine.simulation_check import check, describe_check

    figures = check(path)
    return figures, describe_check(figures)


if __name__ == "__main__":
    sys.exit(main())
