"""Machines and the reference training, as TOML files describe them (engine/machines.toml says what may stand there)."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from engine.cost_mixes import PARTS, Machine, Mix, Training, cluster, predict
from engine.errors import UsageError
from engine.simulation_ranks import Network

OURS = Path(__file__).with_name("machines.toml")


@dataclass(frozen=True)
class Described:
    """What is known of one kind of machine."""

    dollars_per_hour: float
    gpus: int = 1
    seconds: float | None = None
    """of the reference training"""
    rows_per_second: float | None = None
    network_gbit: float | None = None


@dataclass(frozen=True)
class Measured:
    """A run of the reference training on a mix."""

    mix: Mix
    even: float
    """seconds"""
    balanced: float | None = None
    """seconds with the balancer that was tried"""
    calibrates: bool = False


@dataclass(frozen=True)
class Reference:
    """The training that machines' seconds are of."""

    name: str
    epochs: float = 1.0
    measured: Sequence[Measured] = ()
    ours: bool = False
    """whether it is that of engine/machines.toml"""


@dataclass(frozen=True)
class Catalogue:
    """All that the files say."""

    machines: Mapping[str, Described] = field(default_factory=dict)
    reference: Reference | None = None


def read_catalogue(extra: Sequence[Path] = ()) -> Catalogue:
    """The machines of this package, extended by files in turn.

    Raises:
        UsageError: a file cannot be read, or says something that makes no sense.
    """
    found = Catalogue()
    for path in (OURS, *extra):
        found = _extended(found, path)
    return found


def reference_training(catalogue: Catalogue) -> tuple[Training, dict[str, Machine]]:
    """The reference training once, and the machines whose seconds are known; each GPU keeps its batch.

    What the exchange between machines costs, per 2 (n - 1) / n on n GPUs and at the steps of one GPU, is the one number
    that is fitted: by least squares of relative errors, to the runs that calibrate. Without any it costs nothing.
    """
    machines = {
        name: Machine(name, one.dollars_per_hour, 1 / one.seconds, one.gpus)
        for name, one in catalogue.machines.items()
        if one.seconds is not None
    }
    bare = Training(1.0, PARTS, 1.0, grows=True)
    upper, lower = 0.0, 0.0
    for run in catalogue.reference.measured if catalogue.reference else ():
        if run.calibrates:
            ranks = len(cluster(run.mix, machines))
            per_second = replace(bare, network=_network(1.0)).exchange_seconds(ranks, 0.0) / run.even
            upper += per_second * (1 - predict(run.mix, machines, bare).even.seconds / run.even)
            lower += per_second**2
    return replace(bare, network=_network(max(0.0, upper / lower) if lower else 0.0)), machines


def _network(exchange_seconds: float) -> Network:
    """A network on which a step takes so many seconds per 2 (n - 1) / n."""
    return Network(bandwidth=1.0, gradient_bytes=exchange_seconds)


def parse_mix(text: str, known: Mapping[str, object], where: str) -> Mix:
    """A mix such as g3.4xlarge:3,p2.xlarge, in the order of the known machines.

    Args:
        text: names, each with its number where it is not 1.
        known: machines by name.
        where: the option or file that it comes from.

    Raises:
        UsageError: not a mix of known machines.
    """
    counts: dict[str, int] = {}
    for item in text.split(","):
        name, _, count = item.strip().partition(":")
        if name not in known:
            raise UsageError(f"{where} {text!r}: no machine is named {name!r}; there are {', '.join(known)}")
        if not (count or "1").isdecimal() or int(count or 1) < 1:
            raise UsageError(
                f"{where} {text!r}: give names and numbers of at least 1, such as g3.4xlarge:3,p2.xlarge:1"
            )
        counts[name] = counts.get(name, 0) + int(count or 1)
    return {name: counts[name] for name in known if name in counts}


def _extended(before: Catalogue, path: Path) -> Catalogue:
    where = f"--machines {path}"
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{where}: {error.strerror}; name a TOML file of machines") from None
    except ValueError as error:
        raise UsageError(f"{where}: not TOML ({error}); engine/machines.toml shows what may stand there") from None
    _only(found, ("machines", "reference"), where)
    old = before.machines
    if "reference" in found:  # seconds of another training say nothing of this one
        old = {name: replace(one, seconds=None) for name, one in old.items()}
    tables = _table(found.get("machines", {}), f"{where}: [machines]")
    machines = {**old, **{name: _described(table, f"{where}: machines.{name}") for name, table in tables.items()}}
    for name in tables:
        if set(name) & set(":,=") or name != name.strip() or not name:
            raise UsageError(f"{where}: machine {name!r}: a name cannot be empty or hold one of : , =")
    reference = before.reference
    if "reference" in found:
        reference = _reference(_table(found["reference"], f"{where}: [reference]"), machines, where, path == OURS)
    return Catalogue(machines, reference)


def _described(table: Any, where: str) -> Described:
    table = _table(table, where)
    _only(table, tuple(Described.__dataclass_fields__), where)
    if "dollars_per_hour" not in table:
        raise UsageError(f"{where}: dollars_per_hour is missing; give the price of the whole machine")
    for name, value in table.items():
        _above_zero(value, f"{where}: {name}", whole=name == "gpus", least=0 if name == "dollars_per_hour" else None)
    return Described(**table)


def _reference(table: dict[str, Any], machines: Mapping[str, Described], where: str, ours: bool) -> Reference:
    _only(table, ("name", "epochs", "measured"), f"{where}: [reference]")
    epochs = table.get("epochs", 1)
    _above_zero(epochs, f"{where}: reference.epochs")
    timed = {name: one for name, one in machines.items() if one.seconds is not None}
    runs = table.get("measured", [])
    if not isinstance(runs, list):
        raise UsageError(f"{where}: reference.measured must be a list of tables: write [[reference.measured]]")
    measured = [_measured(one, timed, f"{where}: reference.measured {number}") for number, one in enumerate(runs, 1)]
    return Reference(str(table.get("name", "the reference training")), float(epochs), measured, ours)


def _measured(table: Any, timed: Mapping[str, Described], where: str) -> Measured:
    table = _table(table, where)
    _only(table, tuple(Measured.__dataclass_fields__), where)
    mix = parse_mix(str(table.get("mix", "")), timed, f"{where}: mix")
    _above_zero(table.get("even"), f"{where}: even")
    if "balanced" in table:
        _above_zero(table["balanced"], f"{where}: balanced")
    calibrates = table.get("calibrates", False)
    if not isinstance(calibrates, bool):
        raise UsageError(f"{where}: calibrates must be true or false")
    if calibrates and sum(mix.values()) < 2:
        raise UsageError(f"{where}: one machine exchanges nothing with others, so nothing can be fitted to it")
    return Measured(mix, float(table["even"]), table.get("balanced"), calibrates)


def _table(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UsageError(f"{where} must be a table; engine/machines.toml shows what may stand there")
    return value


def _only(table: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    for name in table:
        if name not in known:
            raise UsageError(f"{where}: {name!r} means nothing here; there are {', '.join(known)}")


def _above_zero(value: Any, where: str, *, whole: bool = False, least: float | None = None) -> None:
    is_number = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or not (value > 0 if least is None else value >= least):
        kind = "a whole number" if whole else "a number"
        raise UsageError(f"{where} must be {kind} {'above 0' if least is None else f'of at least {least:g}'}")
