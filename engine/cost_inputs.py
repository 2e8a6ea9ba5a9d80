"""From the command line of `python -m engine.cost` to machines, a training and the mixes to try it on."""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from engine.cost_machines import Catalogue, Described, parse_mix, read_catalogue, reference_training
from engine.cost_mixes import Machine, Mix, Training, all_mixes, count_mixes
from engine.errors import UsageError
from engine.simulation_metrics import Measured, read_metrics
from engine.simulation_ranks import Network

MOST_MIXES = 20_000
MOST_RANKS = 4096
"""of a mix"""
BATCH_SIZE = 512
GRADIENT_BYTES = 4.1e6
GBIT = 1e9 / 8
"""bytes"""


@dataclass(frozen=True)
class Question:
    """What is asked."""

    catalogue: Catalogue
    training: Training
    machines: Mapping[str, Machine]
    mixes: Sequence[Mix]
    notes: Sequence[str]
    """what must be said about where the figures come from"""
    is_reference: bool = False
    """whether the training is just the one that the catalogue's runs were measured on"""


def question_of(options: argparse.Namespace) -> Question:
    """All that the command line says.

    Raises:
        UsageError: a value that makes no sense, or a file that cannot be used.
    """
    _check_numbers(options)
    catalogue = read_catalogue(options.machines or ())
    catalogue = replace(catalogue, machines=_priced(catalogue.machines, options.price or ()))
    by_rows = options.rows is not None or bool(options.metrics)
    training, machines, notes = (_by_rows if by_rows else _by_reference)(options, catalogue)
    if not machines:
        raise UsageError("no machine's speed is known; give --rows-per-second NAME=V, or seconds in a file of machines")
    left_out = [name for name in catalogue.machines if name not in machines]
    if left_out:
        how = "--rows-per-second NAME=V" if by_rows else "--rows N with --rows-per-second NAME=V"
        notes.append(f"without a speed, so left out: {', '.join(left_out)} ({how} brings them in)")
    plain = not by_rows and options.epochs in (None, catalogue.reference.epochs if catalogue.reference else None)
    return Question(catalogue, training, machines, _mixes(options, machines, catalogue), notes, plain)


def _by_reference(options: argparse.Namespace, catalogue: Catalogue) -> tuple[Training, dict[str, Machine], list[str]]:
    """The training that the machines' seconds are of."""
    for name in ("rows_per_second", "batch_size", "batch_per_gpu", "bandwidth", "latency", "gradient_bytes", "hidden"):
        if getattr(options, name) is not None:
            raise UsageError(f"--{name.replace('_', '-')} speaks of rows and steps: give --rows N too (of an epoch)")
    training, machines = reference_training(catalogue)
    if catalogue.reference is None or not machines:
        raise UsageError("no machine has seconds of a reference training; give --rows N and --rows-per-second NAME=V")
    times = (options.epochs or catalogue.reference.epochs) / catalogue.reference.epochs
    exchange = training.network.gradient_bytes
    notes = [
        f"{catalogue.reference.name}" + (f", {times:g} times as many epochs" if times != 1 else "")
        + "; every GPU keeps its batch, so that more GPUs take fewer steps",
        f"exchange between machines: {exchange * times:,.0f} s x 2 (n - 1) / n / n on n GPUs "
        "(one number, fitted; --check tells how well it foretells other runs)",
    ]  # fmt: skip
    return replace(training, work=times, steps=times), machines, notes


def _by_rows(options: argparse.Namespace, catalogue: Catalogue) -> tuple[Training, dict[str, Machine], list[str]]:
    """So many rows and epochs, at rows per second."""
    rates = {name: one.rows_per_second for name, one in catalogue.machines.items() if one.rows_per_second is not None}
    for text in options.rows_per_second or ():
        name, value = _named("--rows-per-second", text, catalogue.machines)
        rates[name] = _above_zero("--rows-per-second", text, value)
    notes, rest, runs = list[str](), Network(), list[Measured]()
    for text in options.metrics or ():
        name, value = _named("--metrics", text, catalogue.machines)
        path, ranks = _ranks_of(value)
        found, rough = read_metrics(path)
        rates[name], note = _measured_rate(path, ranks, found, name, catalogue.machines[name].gpus)
        notes.append(note + ("; shares changed inside it, so this is rough" if rough else ""))
        runs.append(found)
        if ranks and not rest.bandwidth and len(found.rates) > 1:
            rest = _rest(found)
    if options.batch_size is not None and options.batch_per_gpu is not None:
        raise UsageError("--batch-size and --batch-per-gpu both say how large a batch is: leave one out")
    network = Network(
        (options.bandwidth or 0.0) * GBIT,
        (options.latency or 0.0) * 1e-6,
        GRADIENT_BYTES if options.gradient_bytes is None else options.gradient_bytes,
        options.hidden or 0.0,
    )
    if rest.bandwidth and options.bandwidth is None:
        for name in ("latency", "gradient_bytes", "hidden"):
            if getattr(options, name) is not None:
                raise UsageError(f"--{name.replace('_', '-')}: the run's own exchange is used; give --bandwidth too")
        network = rest
        notes.append("exchange between machines: what a step of that run took beyond compute, grown as a ring's bytes")
    rows = options.rows or runs[0].rows
    batch_size = options.batch_size or options.batch_per_gpu or (runs[0].batch_size if runs else BATCH_SIZE)
    work = float(rows) * (options.epochs or 1)
    training = Training(work, batch_size, work / batch_size, options.batch_per_gpu is not None, network)
    machines = {
        name: Machine(name, one.dollars_per_hour, rates[name], one.gpus, (one.network_gbit or 0.0) * GBIT)
        for name, one in catalogue.machines.items()
        if name in rates
    }
    silent = [name for name, machine in machines.items() if not machine.bandwidth]
    if not network.bandwidth and silent:
        notes.append(f"no network speed of {', '.join(silent)}: their bytes cost no time (--bandwidth GBIT gives one)")
    epochs = f"{options.epochs or 1:g} epoch" + ("s" if (options.epochs or 1) != 1 else "")
    size = f"{batch_size:,} rows on " + ("each GPU" if training.grows else "all GPUs of a mix together")
    notes.insert(0, f"{rows:,} rows, {epochs}, batches of {size}")
    return training, machines, notes


def _measured_rate(path: Path, ranks: Sequence[int], found: Measured, name: str, gpus: int) -> tuple[float, str]:
    """Rows per second of a machine from a run: of all of a run on one such machine, or of some ranks of any run."""
    if not ranks:
        if len(found.rates) != gpus:
            raise UsageError(
                f"--metrics {name}={path}: the run has {len(found.rates)} ranks, {name} has {gpus} of them, so it was "
                f"not one such machine alone; name the machine's ranks, such as {name}={path}:0"
            )
        return found.rows / found.seconds, f"{name}: rows and seconds of epoch {found.epoch} of {path}"
    if max(ranks) >= len(found.rates):
        raise UsageError(f"--metrics {name}={path}: the run has ranks 0 to {len(found.rates) - 1}")
    rate = gpus * sum(found.rates[rank] for rank in ranks) / len(ranks)
    note = f"{name}: compute of rank {' and '.join(map(str, ranks))} in epoch {found.epoch} of {path}"
    return rate, note + (f", x {gpus} GPUs" if gpus > 1 else "")


def _rest(found: Measured) -> Network:
    """A network that takes, on as many ranks, what a step of the run took beyond the slowest rank's compute."""
    ring = Network(bandwidth=1.0, gradient_bytes=1.0).seconds(len(found.rates))
    return Network(bandwidth=1.0, gradient_bytes=found.step_seconds / ring)


def _ranks_of(text: str) -> tuple[Path, list[int]]:
    """A path, and the ranks after its last colon if they are such."""
    path, colon, ranks = text.rpartition(":")
    if colon and all(rank.isdecimal() for rank in ranks.split(",")):
        return Path(path), [int(rank) for rank in ranks.split(",")]
    return Path(text), []


def _mixes(options: argparse.Namespace, machines: Mapping[str, Machine], catalogue: Catalogue) -> list[Mix]:
    if options.mix:
        if options.among or options.most is not None:
            raise UsageError("--mix names the mixes: leave out --among and --most")
        mixes = [parse_mix(text, catalogue.machines, "--mix") for text in options.mix]
        for text, mix in zip(options.mix, mixes, strict=True):
            unknown = [name for name in mix if name not in machines]
            if unknown:
                raise UsageError(
                    f"--mix {text}: the speed of {unknown[0]} is not known; give --rows-per-second or seconds"
                )
        mixes = [mix for number, mix in enumerate(mixes) if mix not in mixes[:number]]
    else:
        names = list(machines)
        if options.among:
            chosen = parse_mix(options.among, machines, "--among")
            names = [name for name in machines if name in chosen]
        most = 4 if options.most is None else options.most
        if count_mixes(len(names), most) > MOST_MIXES:
            raise UsageError(
                f"--most {most}: {len(names)} kinds of machines give {count_mixes(len(names), most):,} mixes, more "
                f"than {MOST_MIXES:,}; lower it, or name fewer kinds with --among"
            )
        mixes = all_mixes(names, most)
    largest = max(sum(machines[name].gpus * count for name, count in mix.items()) for mix in mixes)
    if largest > MOST_RANKS:
        raise UsageError(f"a mix has {largest:,} GPUs; at most {MOST_RANKS:,} are looked at")
    return mixes


def _priced(machines: Mapping[str, Described], texts: Sequence[str]) -> dict[str, Described]:
    priced = dict(machines)
    for text in texts:
        name, value = _named("--price", text, machines)
        priced[name] = replace(priced[name], dollars_per_hour=_above_zero("--price", text, value))
    return priced


def _named(flag: str, text: str, known: Mapping[str, object]) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not value:
        raise UsageError(f"{flag} {text!r}: give NAME=VALUE")
    if name not in known:
        raise UsageError(f"{flag} {text!r}: no machine is named {name!r}; describe it in a file for --machines")
    return name, value


def _above_zero(flag: str, text: str, value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = 0.0
    if not 0 < number < math.inf:
        raise UsageError(f"{flag} {text!r}: give a number above 0")
    return number


def _check_numbers(options: argparse.Namespace) -> None:
    """Ranges of what stands for itself."""
    for name in ("rows", "batch_size", "batch_per_gpu", "most", "show"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UsageError(f"--{name.replace('_', '-')} must be at least 1")
    for name, least in (("epochs", None), ("budget", None), ("deadline", None), ("bandwidth", None), ("latency", 0),
                        ("gradient_bytes", 0), ("hidden", 0)):  # fmt: skip
        value = getattr(options, name)
        if value is None:
            continue
        if not math.isfinite(value) or not (value > 0 if least is None else value >= least):
            raise UsageError(f"--{name.replace('_', '-')} must be {'above 0' if least is None else 'at least 0'}")
    if (options.hidden or 0) > 1:
        raise UsageError("--hidden must be at most 1")
