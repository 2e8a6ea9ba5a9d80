"""One job of benchmarks.balance: all methods in the same ranks, taking turns; started under mpirun.

It reads spec.json in the scratch folder and writes turns.json there: a list of turns {"method", "counted", "ranks"},
where "ranks" holds each rank's steps (see balance_methods.Step).
"""

from __future__ import annotations

import gc
import os
import sys
from pathlib import Path
from typing import Any

import engine
from benchmarks.balance_methods import DdpMethod, EngineMethod, OriginalMethod, Recorder
from benchmarks.balance_settings import ADAPTIVE
from benchmarks.balance_work import SEED, get, put, settle

PATIENCE = 300.0


class Job:
    """The methods, and the turns they have taken."""

    def __init__(self, spec: dict[str, Any], data: engine.Dataset, session: engine.Session, scratch: Path) -> None:
        self.spec, self._data, self.session, self.scratch = spec, data, session, scratch
        self.plan = engine.Plan(layout=data.layout, batch_size=spec["batch_size"], seed=SEED)
        self.recorder = Recorder()
        self.methods = {name: self.make(name) for name in spec["methods"]}
        self.turns: list[dict[str, Any]] = []

    def make(self, name: str, shares: list[float] | None = None) -> EngineMethod | DdpMethod:
        """A method, from the start."""
        place = self._data, self.plan, self.session, self.recorder
        if name == "original":
            return OriginalMethod(*place)
        if name == "ddp":
            return DdpMethod(*place, self.scratch / "ddp-store")
        if name == "oracle":
            return EngineMethod(*place, shares=shares or self.spec["oracle"])
        return EngineMethod(*place, balance=name, rebalance_every=self.spec["window"])

    def turn(self, name: str, steps: int, counted: bool) -> None:
        """Let one method train."""
        gc.collect()
        self.session.comm.Barrier()
        self.recorder.begin()
        method = self.methods[name]
        known = len(method.decisions)
        method.run(steps)
        mine = {"steps": self.recorder.steps, "controller_seconds": self.recorder.controller}
        ranks = self.session.comm.gather(mine, root=0)
        if ranks is not None:
            shares = [event["shares"] for event in method.decisions[known:]]
            self.turns.append({"method": name, "counted": counted, "ranks": ranks, "shares_chosen": shares})

    def rounds(self) -> None:
        """A short first round, one in which the adaptive methods settle, then those that count."""
        spec = self.spec
        for name in self.methods:
            self.turn(name, spec["first_steps"], False)
        for name in self.methods:
            if name in ADAPTIVE:
                self.turn(name, spec["steps"][name], False)
        self.pause(0)
        for number in range(spec["rounds"]):
            # To and fro: what slows the machine steadily slows all methods alike.
            for name in list(self.methods)[:: -1 if number % 2 else 1]:
                self.turn(name, spec["steps"][name], True)
            self.pause(number + 1)

    def pause(self, number: int) -> list[float]:
        """Wait while the parent stops these processes and measures the ranks' rates of compute without them."""
        self.session.comm.Barrier()
        put(self.scratch / f"pause-{number}-{self.session.rank}.json", None)
        rates: list[float] = get(self.scratch / f"go-on-{number}.json", PATIENCE)
        return rates

    def reaction(self) -> None:
        """A rank becomes three times slower in mid-epoch under auto; then an oracle that knows its new speed."""
        spec = self.spec
        self.turn("auto", spec["first_steps"], False)
        self.turn("auto", spec["reaction"]["settling"], False)
        if self.session.root:
            cut = spec["reaction"]["cut_after"]
            self.recorder.after_step = lambda count: put(self.scratch / "cut.json", None) if count == cut else None
        self.turn("auto", spec["steps"]["auto"], True)
        self.recorder.after_step = lambda count: None
        self.methods["oracle"] = self.make("oracle", self.pause(0))
        self.turn("oracle", spec["first_steps"], False)
        self.turn("oracle", spec["reaction"]["settling"], True)


def main() -> int:
    """Run the job; every rank returns the same status."""
    scratch = Path(sys.argv[1])
    spec = get(scratch / "spec.json", PATIENCE)
    session = engine.init(device="cpu", threads=1)
    settle()
    with engine.open(spec["data"]) as data:
        job = Job(spec, data, session, scratch)
        put(scratch / f"ready-{session.rank}.json", os.getpid())
        get(scratch / "go.json", PATIENCE)
        session.comm.Barrier()
        if spec["reaction"]:
            job.reaction()
        else:
            job.rounds()
        if session.root:
            put(scratch / "turns.json", job.turns)
        for method in job.methods.values():
            if isinstance(method, DdpMethod):
                method.close()
        session.comm.Barrier()
    return 0


if __name__ == "__main__":
    sys.exit(main())
