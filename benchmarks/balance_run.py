"""One setting of benchmarks.balance: the ranks' own rates, the job, the rates again, and what follows from them."""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.balance_figures import batch_size_alone, counted, factors, oracle_shares, rate_at, reaction, time_over
from benchmarks.balance_places import LabPlace, Place, end, parts_of_core
from benchmarks.balance_settings import METHODS, STEPS, Setting
from benchmarks.balance_work import dataset, put

PATIENCE = 600.0
FIRST_STEPS = 3
FEWEST_STEPS = 3
LONG_STEP = 1.0
"""seconds: with an even split of such steps the first round is as short as can be"""
SLOW_DOWN = 3
REACTION_WINDOW = 20
REACTION_STEPS = 80
KEYS = {"off": "even"}


class Alone:
    """The ranks' processes that measure without a job; see benchmarks.balance_alone."""

    def __init__(self, place: Place, data: Path, scratch: Path) -> None:
        self._place, self._scratch, self._number = place, scratch, 0
        words = ["--data", str(data), "--scratch", str(scratch), "--ranks", str(place.ranks)]
        command = [sys.executable, "-m", "benchmarks.balance_alone", *words]
        self.processes = [place.start_alone(rank, [*command, "--rank", str(rank)]) for rank in range(place.ranks)]

    def wait_until_ready(self) -> None:
        """They have imported torch and opened the data, which would take long at a low quota."""
        gather(self._scratch, "alone-ready", self.processes)

    def ask(self, what: str, **more: Any) -> list[Any]:
        """Have all ranks measure at once; their answers."""
        number = self._number
        put(self._scratch / f"request-{number}.json", {"what": what, **more})
        self._number += 1
        return [] if what == "stop" else gather(self._scratch, f"alone-{number}", self.processes)

    def close(self) -> None:
        """End them."""
        self.ask("stop")
        for process in self.processes:
            try:
                process.wait(3)
            except subprocess.TimeoutExpired:
                end(process)


def gather(scratch: Path, name: str, processes: Sequence[subprocess.Popen[bytes]]) -> list[Any]:
    """Every rank's file of this name.

    Raises:
        RuntimeError: a process has ended, or the files do not come.
    """
    paths = [scratch / f"{name}-{rank}.json" for rank in range(len(processes))]
    limit = time.monotonic() + PATIENCE
    while not all(path.exists() for path in paths):
        if any(process.poll() is not None for process in processes) or time.monotonic() > limit:
            raise RuntimeError(f"the ranks did not answer with {name}; their own messages stand above")
        time.sleep(0.05)
    return [json.loads(path.read_text()) for path in paths]


def measure(setting: Setting, options: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """Run one setting.

    Raises:
        Skipped: this machine cannot run it.
        RuntimeError: a process of it failed.
    """
    ranks = len(setting.speeds)
    parts = parts_of_core(setting.speeds, len(os.sched_getaffinity(0)))
    steps = options.steps or STEPS[setting.batch_size]
    reacts = setting.kind == "reaction"
    data = dataset(
        options.workdir.absolute(),
        setting.batch_size * math.ceil((REACTION_STEPS if reacts else steps) / len(setting.bounds)),
        setting.bounds,
    )
    quotas = reacts or min(parts) < 1
    place = Place(ranks, quotas) if setting.network == "local" else LabPlace(ranks, setting.network)
    with place:
        alone = Alone(place, data, scratch)
        try:
            alone.wait_until_ready()
            for rank, part in enumerate(parts):
                place.slow(rank, part)
            before = alone.ask("profile", batch_size=setting.batch_size, seconds=options.seconds)
            profiles = [{int(size): rate["compute_rate"] for size, rate in rank["sizes"].items()} for rank in before]
            spec = job_spec(setting, options, str(data), profiles, steps)
            best, again = [rank["best"] for rank in before], 2 * options.seconds
            turns, pauses = run_job(place, parts, spec, scratch, partial(alone.ask, "rate", sizes=best, seconds=again))
        finally:
            alone.close()
    rates = [fmean(rank["rate"] for rank in ranks) for ranks in zip(*pauses, strict=True)]
    found = setting.as_json() | {
        "rates": rates,
        "ratio_measured": [rate / max(rates) for rate in rates],
        "best_local_batch": best,
        "parts_of_core": parts,
        "rates_at": [{size: rate["rate"] for size, rate in rank["sizes"].items()} for rank in before],
        "rates_in_turn": [[rank["rate"] for rank in ranks] for ranks in (before, *pauses)],
    }
    if setting.kind == "reaction":
        return found | reaction_figures(turns, rates, spec["reaction"]["cut_after"] + REACTION_WINDOW + 2)
    totals = [sum(rank["rate"] for rank in ranks) for ranks in pauses]
    found["drift"] = max(totals) / min(totals) - 1
    return found | figures(turns, rates, profiles, [rank["rate"] for rank in before])


def job_spec(
    setting: Setting,
    options: argparse.Namespace,
    data: str,
    profiles: Sequence[Mapping[int, float]],
    steps: int,
) -> dict[str, Any]:
    """What the job is told."""
    shares = oracle_shares(profiles, setting.batch_size)
    even = setting.batch_size / len(shares)
    # An even split is slower by about this much; it takes fewer steps, and no longer than the others.
    slower = max(even / rate_at(profile, even) for profile in profiles)
    balanced = max(share / max(profile.values()) for share, profile in zip(shares, profiles, strict=True))
    fewer = max(FEWEST_STEPS, round(steps * min(1.0, balanced / slower)))
    spec = {
        "data": data,
        "batch_size": setting.batch_size,
        "methods": [name for name in METHODS if name in options.methods],
        "oracle": shares,
        "window": max(2, steps // 2),
        "rounds": options.rounds,
        "first_steps": FIRST_STEPS if slower < LONG_STEP else 2,
        "steps": {name: fewer if name in ("off", "ddp") else steps for name in METHODS},
        "reaction": None,
    }
    if setting.kind == "reaction":
        half = REACTION_STEPS // 2
        spec |= {"methods": ["auto"], "window": REACTION_WINDOW, "steps": {"auto": REACTION_STEPS}}
        spec["reaction"] = {"settling": half, "cut_after": half}
    return spec


def run_job(
    place: Place, parts: Sequence[float], spec: Mapping[str, Any], scratch: Path, rates: Callable[[], list[Any]]
) -> tuple[list[dict[str, Any]], list[Any]]:
    """Start the job and attend to it; its turns, and the ranks' rates that were measured in its pauses."""

    def files(name: str) -> list[Path]:
        return [scratch / f"{name}-{rank}.json" for rank in range(place.ranks)]

    put(scratch / "spec.json", spec)
    for rank in range(place.ranks):
        place.slow(rank, 1)  # starting up at a low quota would take long
    pauses: list[Any] = []
    with started(place, [sys.executable, "-m", "benchmarks.balance_job", str(scratch)]) as job:
        wait_for(job, files("ready"))
        pids = [json.loads(path.read_text()) for path in files("ready")]
        for rank, part in enumerate(parts):
            place.slow(rank, part)
        put(scratch / "go.json", None)
        if spec["reaction"]:
            wait_for(job, [scratch / "cut.json"], 0.002)
            place.slow(0, parts[0] / SLOW_DOWN)
        for number in range(1 if spec["reaction"] else spec["rounds"] + 1):
            wait_for(job, files(f"pause-{number}"))
            with stopped(pids):
                pauses.append(rates())
            put(scratch / f"go-on-{number}.json", [rank["compute_rate"] for rank in pauses[-1]])
        wait_for(job, [scratch / "turns.json"])
        job.wait(60)
    turns: list[dict[str, Any]] = json.loads((scratch / "turns.json").read_text())
    return turns, pauses


@contextmanager
def started(place: Place, command: Sequence[str]) -> Iterator[subprocess.Popen[bytes]]:
    """A job that does not outlive the block."""
    job = place.start_job(command)
    try:
        yield job
    finally:
        end(job)


@contextmanager
def stopped(pids: Sequence[int]) -> Iterator[None]:
    """The job's ranks take no time of their cores meanwhile, Horovod's threads included."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def wait_for(job: subprocess.Popen[bytes], paths: Sequence[Path], every: float = 0.02) -> None:
    """Wait until files are there.

    Raises:
        RuntimeError: the job has ended before, or takes too long.
    """
    limit = time.monotonic() + PATIENCE
    while not all(path.exists() for path in paths):
        if job.poll() is not None and not all(path.exists() for path in paths):
            raise RuntimeError(f"the job ended with status {job.returncode}; its own messages stand above")
        if time.monotonic() > limit:
            raise RuntimeError(f"{paths[0].name} did not come within {PATIENCE:.0f} s")
        time.sleep(every)


def figures(
    turns: Sequence[Mapping[str, Any]],
    rates: Sequence[float],
    profiles: Sequence[Mapping[int, float]],
    profiled: Sequence[float],
) -> dict[str, Any]:
    """Every method's figures, and those that are judged.

    Args:
        turns: of all methods.
        rates: the ranks' own rates during the job.
        profiles: compute rate by local batch, per rank, before the job.
        profiled: the ranks' own rates at that time.
    """
    methods: dict[str, dict[str, Any]] = {}
    for name in METHODS:
        own = [turn for turn in turns if turn["counted"] and turn["method"] == name]
        if not own:
            continue
        steps = counted(own)
        mean_rows = [fmean(rank) for rank in zip(*steps.rows, strict=True)]
        methods[name] = factors(steps, rates) | {"shares": mean_rows, "steps": len(steps.each)}
        methods[name]["batch_size_alone"] = batch_size_alone(mean_rows, profiles, profiled)
    found: dict[str, Any] = {f"E_{KEYS.get(name, name)}": item["E"] for name, item in methods.items()}
    auto = methods.get("auto", {})
    found |= {name: auto.get(name) for name in ("mean_over_max", "mean_over_max_p10", "controller")}
    even = time_over(turns, "auto", "off")
    found["auto_over_oracle"] = time_over(turns, "auto", "oracle")
    found["auto_rate_over_even"] = None if even is None else 1 / even
    return found | {"methods": methods}


def reaction_figures(turns: Sequence[Mapping[str, Any]], rates: Sequence[float], settled: int) -> dict[str, Any]:
    """Auto against the new oracle from `settled` steps on."""
    auto = factors(counted([turn for turn in turns if turn["counted"] and turn["method"] == "auto"]), rates)
    # A turn's first step is not counted: the step after `settled` of them stands at settled - 1.
    return reaction(turns, settled - 1) | {"controller": auto["controller"]}
