"""Faults in numbers: kills, signals, hangs, cut cables and a soak, each counted; `make faults` runs all of them.

    python tests/faults/campaign.py --kills 100 --terms 50 --stops 20 --cuts 10 --soak-minutes 30

Prints a line for every fault that was not survived, a table, and as its last line one JSON object. Exit status 1 when
anything failed. What is done to which rank at which step is drawn from --seed and the fault's number alone.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np
import psutil

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "faults")]

from jobs import PATIENCE, alive, command, environment, events, options, ranks_of, run, start, wait_until  # noqa: E402
from victim import PHASES  # noqa: E402

from tests.cluster.hosts import cut_while_training, two_hosts  # noqa: E402
from tests.synthetic import write_dataset  # noqa: E402

VICTIM = (ROOT / "tests" / "faults" / "victim.py",)
TIMEOUT = 5
"""--rank-timeout of jobs that hang"""
MOST_STEP = 170
"""of 200: there is something left to go on with"""
GROWTH = 0.02
"""of resident memory in a soak, from its second quarter to its last"""
WARM_MINUTES = 10
"""a shorter one still warms up in its second quarter: ten times as much is let pass"""


class Failed(Exception):
    """A fault that was not survived."""


class Campaign:
    """Runs faults on one dataset.

    Args:
        folder: scratch.
        seed: of what is drawn.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.seed = folder, seed
        self.data = folder / "data"
        write_dataset(self.data)
        self._undisturbed: dict[int, Path] = {}
        self._journals: dict[int, Path] = {}

    def drawn(self, kind: int, number: int) -> np.random.Generator:
        """Random numbers of one fault."""
        return np.random.Generator(np.random.Philox(key=[self.seed, (kind << 32) + number]))

    def balanced(self, out: Path) -> list[object]:
        """Options of a job whose shares change again and again."""
        return [*options(self.data, out), "--balance", "auto", "--rebalance-every", 15]

    def journal(self, ranks: int) -> Path:
        """metrics.jsonl of a balanced run: shares that change, to be repeated."""
        if ranks not in self._journals:
            out = self.folder / f"journal-{ranks}"
            self.must(run(*command(ranks, *self.balanced(out))), "the run that is repeated")
            self._journals[ranks] = out / "metrics.jsonl"
        return self._journals[ranks]

    def following(self, ranks: int, out: Path) -> list[object]:
        """Options of a job with the journal's shares."""
        return [*options(self.data, out), "--shares-from", self.journal(ranks)]

    def undisturbed(self, ranks: int) -> Path:
        """A run with the journal's shares that nothing disturbs."""
        if ranks not in self._undisturbed:
            out = self.folder / f"undisturbed-{ranks}"
            self.must(run(*command(ranks, *self.following(ranks, out))), "the undisturbed run")
            self._undisturbed[ranks] = out
        return self._undisturbed[ranks]

    @staticmethod
    def must(done: subprocess.CompletedProcess[str], what: str) -> None:
        """Fail where a job failed."""
        if done.returncode:
            raise Failed(f"{what} ended with {done.returncode}: {(done.stdout + done.stderr)[-2000:]}")

    def same(self, out: Path, other: Path) -> None:
        """Fail unless both runs ended with the same weights, by the same losses."""
        ends = [events(path)[-1] for path in (out, other)]
        if ends[0].get("status") != "finished" or ends[0]["weights_digest"] != ends[1]["weights_digest"]:
            raise Failed(f"another end than undisturbed: {ends}")
        losses = [[(e["step"], e["loss"]) for e in events(path) if e["event"] == "step"] for path in (out, other)]
        if losses[0] != losses[1]:
            raise Failed("other losses than undisturbed")

    def gone(self, ranks: list[psutil.Process]) -> None:
        """Fail unless all of a job's processes have ended."""
        try:
            wait_until(lambda: not any(alive(process) for process in ranks), "the end of all ranks")
        except AssertionError as error:
            raise Failed(str(error)) from None

    def ends(self, job: subprocess.Popen[str], seconds: float = PATIENCE) -> str:
        """Wait for a job's end; its output."""
        try:
            return job.communicate(timeout=seconds)[0]
        except subprocess.TimeoutExpired:
            job.kill()
            raise Failed(f"the job has not ended within {seconds:g} s") from None

    def running(self, job: subprocess.Popen[str], out: Path, step: int) -> list[psutil.Process]:
        """Wait for a step; the job's ranks."""
        wait_until(lambda: job.poll() is not None or last_step(out) >= step, f"step {step}")
        if job.poll() is not None:
            raise Failed(f"the job ended by itself: {job.communicate()[0][-2000:]}")
        return ranks_of(job)

    def kill(self, number: int) -> str:
        """SIGKILL in a phase; the run that goes on must end as if undisturbed."""
        rng = self.drawn(0, number)
        phase = PHASES[number % len(PHASES)]
        ranks = 2 + number // len(PHASES) % 2
        rank, step = int(rng.integers(ranks)), int(rng.integers(MOST_STEP))
        out = self.folder / f"kill-{number}"
        # Who is killed while shares are chosen chooses them; afterwards an undisturbed run repeats them.
        own = self.balanced(out) if phase == "rebalance" else self.following(ranks, out)
        program = (*VICTIM, phase, rank, step)
        job = start(*command(ranks, *own, program=program))
        output = self.ends(job)
        if job.returncode == 0:
            raise Failed(f"{phase} on rank {rank} of {ranks} at step {step}: was never killed")
        if "Traceback" in output:
            raise Failed(f"a traceback: {output[-2000:]}")
        self.must(run(*command(ranks, *own)), "the run that went on")
        if phase == "rebalance":
            repeated = self.folder / f"repeated-{number}"
            again = [*options(self.data, repeated), "--shares-from", out / "metrics.jsonl"]
            self.must(run(*command(ranks, *again)), "the repetition")
            self.same(out, repeated)
            shutil.rmtree(repeated)
        else:
            self.same(out, self.undisturbed(ranks))
        shutil.rmtree(out)
        return phase

    def term(self, number: int) -> str:
        """SIGTERM or SIGUSR1 to a rank or to the launcher: saved, ended, gone on from as if undisturbed."""
        rng = self.drawn(1, number)
        ranks = 2 + number % 2
        which = signal.SIGUSR1 if number % 5 == 4 else signal.SIGTERM
        target = int(rng.integers(-1, ranks))
        by_mpirun = target < 0 and which == signal.SIGTERM
        # mpirun hands it on a second later.
        step = int(rng.integers(MOST_STEP // 8 if by_mpirun else MOST_STEP))
        out = self.folder / f"term-{number}"
        own = [*self.following(ranks, out), "--checkpoint-every", 0]
        job = start(*command(ranks, *own))
        processes = self.running(job, out, step)
        seen = last_step(out)
        (job if target < 0 else processes[target]).send_signal(which)
        output = self.ends(job)
        self.gone(processes)
        # After SIGTERM mpirun ends with 1, whatever its ranks ended with.
        if job.returncode != (1 if by_mpirun else 128 + which):
            raise Failed(f"{which.name} to {target} ended with {job.returncode}: {output[-2000:]}")
        end = events(out)[-1]
        saved = int((out / "checkpoints" / "last").resolve().name[5:])
        # mpirun leaves its ranks a second; on a busy machine the checkpoint for the SIGCONT before it may be the last.
        whole = end.get("status") == "preempted" and saved == end["step"]
        if saved < seen or not (whole or (by_mpirun and end["event"] != "end")):
            raise Failed(f"step {saved} was saved, {seen} was seen, the run tells of {end}")
        self.must(run(*command(ranks, *own)), "the run that went on")
        self.same(out, self.undisturbed(ranks))
        shutil.rmtree(out)
        return which.name

    def stop(self, number: int) -> str:
        """SIGSTOP: all end in time, and rank and host are named."""
        rng = self.drawn(2, number)
        ranks = 2 + number % 2
        target, step = int(rng.integers(ranks)), int(rng.integers(MOST_STEP))
        out = self.folder / f"stop-{number}"
        job = start(*command(ranks, *self.following(ranks, out), "--rank-timeout", TIMEOUT))
        processes = self.running(job, out, step)
        processes[target].send_signal(signal.SIGSTOP)
        output = self.ends(job, TIMEOUT + 30)
        self.gone(processes)
        if job.returncode == 0 or f"rank {target} on " not in output:
            raise Failed(f"rank {target} was stopped, the job said: {output[-2000:]}")
        shutil.rmtree(out)
        return f"rank {'0' if target == 0 else 'n'}"

    def cut(self, number: int) -> str:
        """A cut cable between two hosts: all end on both, and nothing is left."""
        rng = self.drawn(3, number)
        cut_while_training(self.data, self.folder / f"cut-{number}", int(rng.integers(1, 60)))
        return "host2"

    def soak(self, minutes: float) -> dict[str, Any]:
        """Rebalancing at every window and a checkpoint a minute: memory and open files stay as they are."""
        out = self.folder / "soak"
        line = command(2, *self.balanced(out), "--checkpoint-every", 0, "--checkpoint-minutes", 1,
                       "--epochs", 10**6, "--log-every", 50)  # fmt: skip
        with (self.folder / "soak.log").open("w") as log:  # a pipe that nobody reads would fill up and stop the job
            job = subprocess.Popen(line, env=environment(), cwd=ROOT, stdout=log, stderr=log, text=True)
        processes = self.running(job, out, 60)
        samples: list[list[tuple[int, int]]] = [[] for _ in processes]
        end = time.monotonic() + 60 * minutes
        while time.monotonic() < end:
            if job.poll() is not None:
                raise Failed(f"the soak ended by itself: {(self.folder / 'soak.log').read_text()[-2000:]}")
            for process, mine in zip(processes, samples, strict=True):
                mine.append((process.memory_info().rss, process.num_fds()))
            time.sleep(1)
        job.terminate()
        self.ends(job)
        found = {
            "minutes": minutes,
            "steps": last_step(out),
            "changes_of_shares": sum(event["event"] == "shares" and event["changed"] for event in events(out)),
            "memory_growth": max(growth([rss for rss, _ in mine]) for mine in samples),
            "open_files_growth": max(usual_files(mine[len(mine) // 2 :]) - usual_files(mine[: len(mine) // 2])
                                     for mine in samples),
        }  # fmt: skip
        limit = GROWTH if minutes >= WARM_MINUTES else 10 * GROWTH
        if found["memory_growth"] > limit or found["open_files_growth"] > 0:
            raise Failed(f"not flat: {found}")
        return found


def growth(values: list[int]) -> float:
    """From the mean of the second quarter to that of the last, relative."""
    quarter = max(1, len(values) // 4)
    return fmean(values[-quarter:]) / fmean(values[quarter : 2 * quarter] or values) - 1


def usual_files(samples: list[tuple[int, int]]) -> int:
    """Open files of a process, but for the moments in which it writes one."""
    return int(median(files for _, files in samples))


def last_step(out: Path) -> int:
    """The last step that a run has told of."""
    found = events(out)
    return max((event["step"] for event in found[-3:] if "step" in event), default=-1)


def repeat(name: str, fault: Callable[[int], str], count: int) -> dict[str, Any]:
    """Do a fault so many times; how many were survived."""
    kinds: Counter[str] = Counter()
    failures = []
    began = time.monotonic()
    for number in range(count):
        try:
            kinds[fault(number)] += 1
        except (Failed, AssertionError) as error:
            failures.append(f"{name} {number}: {error}")
            print(failures[-1], flush=True)
        if sys.stderr.isatty():
            print(f"\r{name}: {number + 1} of {count}", end="", file=sys.stderr, flush=True)
    seconds = time.monotonic() - began
    return {"wanted": count, "survived": sum(kinds.values()), "kinds": dict(kinds), "seconds": round(seconds)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("kills", 100), ("terms", 50), ("stops", 20), ("cuts", 10)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--soak-minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="faults-") as scratch:
        campaign = Campaign(Path(scratch), arguments.seed)
        faults = {"kills": campaign.kill, "terms": campaign.term, "stops": campaign.stop}
        for name, fault in faults.items():
            results[name] = repeat(name, fault, getattr(arguments, name))
        with two_hosts() if arguments.cuts else nullcontext("") as missing:
            results["cuts"] = repeat("cuts", campaign.cut, 0 if missing else arguments.cuts)
            if missing:
                results["cuts"]["skipped"] = missing
        soak: dict[str, Any] = {"wanted": 0, "survived": 0}
        if arguments.soak_minutes:
            soak = {"wanted": 1, "survived": 0}
            try:
                soak |= {"survived": 1, **campaign.soak(arguments.soak_minutes)}
            except Failed as error:
                print(f"soak: {error}")
        results["soak"] = soak
    print(f"\n{'fault':<8}{'survived':>12}")
    for name, found in results.items():
        details = {key: value for key, value in found.items() if key not in ("wanted", "survived")}
        print(f"{name:<8}{found['survived']:>5} of {found['wanted']:<4}  {details}")
    print(json.dumps(results))
    return int(any(found["survived"] != found["wanted"] for found in results.values()))


if __name__ == "__main__":
    sys.exit(main())
