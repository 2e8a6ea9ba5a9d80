"""What ranks lose beside their computing: to MPI's waiting, and to memory that is given back at every step.

    python -m benchmarks.waiting        # about 3 minutes

1. Two ranks of the engine do nothing, then multiply matrices: the CPU time that an idle one takes (Horovod's thread),
   the multiplications per second of both together, and the time of a small reduction. Three ways: Open MPI as it comes
   (spin), giving the core away between polls (yield: OMPI_MCA_mpi_yield_when_idle), and asleep, the engine's default.
2. One step of the reference model (LSTM 100/32/2 on rows of 100 tokens, 512 of them, one thread): rows a second and the
   process's greatest memory, with malloc's defaults and after engine.environment.keep_memory.

The ways take turns, each time in fresh processes; the figures are medians over the rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import report
from benchmarks.harness import ROOT, THREADS
from benchmarks.report import Target

RANKS = 2
REDUCTIONS = 200
POLL_SECONDS = 50e-6
MATRIX = 300
ROWS = 512
LENGTH = 100
WORDS = 10_000
Figures = dict[str, float]


def idle_ranks(seconds: float) -> Figures | None:
    """On every rank: idle CPU, multiplications per second, milliseconds of a small reduction; known to rank 0."""
    import torch

    import engine

    session = engine.init(device="cpu", threads=1)
    session.comm.Barrier()
    start, cpu = time.perf_counter(), time.process_time()
    time.sleep(seconds)
    idle = (time.process_time() - cpu) / (time.perf_counter() - start)
    session.comm.Barrier()
    matrix, products, start = torch.randn(MATRIX, MATRIX), 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        matrix @ matrix
        products += 1
    speed = products / (time.perf_counter() - start)
    session.comm.Barrier()
    buffer, times = torch.ones(1000), []
    for _ in range(REDUCTIONS):
        start = time.perf_counter()
        handle = session.hvd.allreduce_async_(buffer.fill_(1.0), op=session.hvd.Sum, name="benchmarks.waiting")
        while not session.hvd.poll(handle):
            time.sleep(POLL_SECONDS)
        session.hvd.synchronize(handle)
        times.append(time.perf_counter() - start)
    all_ranks = session.comm.gather((idle, speed, 1e3 * median(times)))
    if not session.root:
        return None
    idle_of, speed_of, times_of = zip(*all_ranks, strict=True)
    return {
        "idle_cpu": max(idle_of),
        "multiplications_per_second": sum(speed_of),
        "reduction_ms": max(times_of),
    }


def model_steps(seconds: float, keep: bool) -> Figures:
    """Rows a second of steps of the reference model, and the process's greatest memory."""
    import torch

    from engine.config import ModelConfig
    from engine.environment import keep_memory
    from engine.model import ReviewModel

    if keep:
        keep_memory()
    torch.set_num_threads(1)
    torch.manual_seed(7)
    shape = ModelConfig(
        embedding_size=100, hidden_size=32, layers=2, directions=1, pooling="max", ngrams=0, dropout=0.0
    )
    model = ReviewModel(shape, WORDS)
    optimizer = torch.optim.Adam(model.parameters())
    tokens = torch.randint(2, WORDS, (ROWS, LENGTH), dtype=torch.int32)
    lengths, target = torch.full((ROWS,), LENGTH, dtype=torch.int32), torch.randint(0, 2, (ROWS,)).float()

    def step() -> None:
        optimizer.zero_grad(set_to_none=False)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(model(tokens, lengths), target)
        loss.backward()
        optimizer.step()

    for _ in range(3):  # memory is taken for the first time
        step()
    times: list[float] = []
    while sum(times) < seconds:
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"rows_per_second": ROWS / median(times), "memory_mib": memory}


def measured(call: str, ranks: int = 1, **settings: str) -> Figures:
    """The figures that a function of this module returns in a process of its own, or in one per rank."""
    code = f"import json; from benchmarks import waiting; found = waiting.{call}; found and print(json.dumps(found))"
    command = [sys.executable, "-c", code]
    if ranks > 1:
        mpirun = str(Path(sys.executable).parent / "mpirun")
        command = [mpirun, "--oversubscribe", "--bind-to", "none", "-n", str(ranks), *command]
    ours = ("MALLOC_", "GLIBC_TUNABLES", "ENGINE_MPI_WAIT")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"} if os.geteuid() == 0 else {}
    one_thread = dict.fromkeys(THREADS, "1")
    job = subprocess.run(
        command, env=clean | root | one_thread | settings, cwd=ROOT, capture_output=True, text=True, check=False
    )
    if job.returncode:
        raise OSError(f"{call} failed with status {job.returncode}: {job.stdout[-500:]}{job.stderr[-500:]}")
    figures: Figures = json.loads(job.stdout.splitlines()[-1])
    return figures


def taking_turns(rounds: int, ways: dict[str, Callable[[], Figures]]) -> dict[str, Any]:
    """Each way's medians over the rounds, and the least and greatest of each figure."""
    found: dict[str, list[Figures]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            found[name].append(way())
    return {
        name: {key: median(item[key] for item in items) for key in items[0]}
        | {"ranges": {key: [min(i[key] for i in items), max(i[key] for i in items)] for key in items[0]}}
        for name, items in found.items()
    }


def table(found: dict[str, Any], names: Sequence[str]) -> str:
    """One part's figures for people."""
    keys = [key for key in found[names[0]] if key != "ranges"]
    rows = [(name, *(f"{found[name][key]:,.2f}" for key in keys), "") for name in names]
    return report.table(("", *(key.replace("_", " ") for key in keys), ""), rows)


def main() -> int:
    """Run the command; returns its exit status: 0 done (targets met or not), 1 failed."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.waiting", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5, help="turns of each way (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement (default: %(default)s)")
    parser.add_argument("--result", metavar="PATH", type=Path, help="write the last line's object to this file too")
    options = parser.parse_args()
    if options.rounds < 1 or options.seconds <= 0:
        print("benchmarks.waiting: --rounds and --seconds must be positive", file=sys.stderr)
        return 2
    ranks = f"idle_ranks({options.seconds})"
    try:
        found = taking_turns(
            options.rounds,
            {
                "ranks_spin": lambda: measured(ranks, RANKS, ENGINE_MPI_WAIT="spin", OMPI_MCA_mpi_yield_when_idle="0"),
                "ranks_yield": lambda: measured(ranks, RANKS, ENGINE_MPI_WAIT="spin", OMPI_MCA_mpi_yield_when_idle="1"),
                "ranks_sleep": lambda: measured(ranks, RANKS, OMPI_MCA_mpi_yield_when_idle="1"),
                "malloc_default": lambda: measured(f"model_steps({options.seconds}, False)"),
                "malloc_keeps": lambda: measured(f"model_steps({options.seconds}, True)"),
            },
        )
    except OSError as error:
        print(f"benchmarks.waiting: {error}", file=sys.stderr)
        return 1
    print(
        table(found, ("ranks_spin", "ranks_yield", "ranks_sleep")),
        table(found, ("malloc_default", "malloc_keeps")),
        sep="\n\n",
    )
    steps = {name: found[name]["rows_per_second"] for name in ("malloc_keeps", "malloc_default")}
    work = {name: found[name]["multiplications_per_second"] for name in ("ranks_sleep", "ranks_spin")}
    judged = [
        Target("idle CPU of a rank that sleeps", found["ranks_sleep"]["idle_cpu"], at_most=0.2),
        Target("work of ranks that sleep / that spin", report.ratio(*work.values()), at_least=1.0),
        Target("malloc_keeps / malloc_default", report.ratio(*steps.values()), at_least=1.0),
    ]
    print("\ntargets:", *(target.as_line() for target in judged), sep="\n")
    result = found | report.verdicts(judged) | {"machine": report.machine(("torch", "horovod", "mpi4py"))}
    report.finish(result, options.result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
