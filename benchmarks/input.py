"""How long a trainer waits for its input.

    python -m benchmarks.input        # about 2 minutes

1. The reference model (LSTM 100/32/2 on rows of 100 tokens, batches of 512) trained on 2 ranks by engine.train: each
   rank's input time as a part of the epoch, from metrics.jsonl.
2. A stand-in for a much faster device: it takes batches as the trainer does and sleeps a microsecond a row, as a model
   of 1 million rows a second would keep its GPU busy; the input time is a part of the whole, after a first epoch.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.harness import ROOT
from benchmarks.ours import dataset
from benchmarks.report import Target
from benchmarks.rows import Work, warm

RANKS = 2
TRAINED_ROWS = 40_000
STUB_ROWS = 2_000_000
STUB_SECONDS = 4.0
SECONDS_PER_ROW = 1e-6
SEED = 7
MODEL = ("--cell", "lstm", "--embedding-size", "100", "--hidden-size", "32", "--layers", "2", "--directions", "1")
MODEL += ("--pooling", "max", "--ngrams", "0")


def trained(folder: Path) -> dict[str, Any]:
    """Train two epochs on 2 ranks; the second one's input time per rank as a part of it."""
    data = dataset(Work(folder / str(TRAINED_ROWS), TRAINED_ROWS, 512, SEED))
    out = folder / "run"
    command = [str(Path(sys.executable).parent / "mpirun"), "--oversubscribe", "--bind-to", "none", "-n", str(RANKS)]
    command += [sys.executable, "-m", "engine.train", "--data", str(data), "--out", str(out), "--epochs", "2"]
    command += ["--batch-size", "512", "--threads", "1", "--device", "cpu", *MODEL]
    subprocess.run(["rm", "-rf", str(out)], check=True)
    root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"} if os.geteuid() == 0 else {}
    job = subprocess.run(command, env=os.environ | root, cwd=ROOT, capture_output=True, text=True, check=False)
    if job.returncode:
        raise OSError(f"the training run failed with status {job.returncode}: {job.stdout[-500:]}{job.stderr[-500:]}")
    events = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    epoch = [event for event in events if event["event"] == "epoch"][-1]
    return {
        "input_part": max(epoch["input_seconds"]) / epoch["seconds"],
        "input_seconds": epoch["input_seconds"],
        "seconds": epoch["seconds"],
        "rows_per_second": epoch["rows_per_second"],
    }


def stub(folder: Path, batch_size: int) -> dict[str, Any]:
    """Take batches and sleep for each row; the part of the time that went into waiting for batches."""
    import engine
    from engine.input import Prefetcher, ReviewSource

    path = dataset(Work(folder / str(STUB_ROWS), STUB_ROWS, batch_size, SEED))
    warm(path)
    with engine.open(path) as data:
        plan = engine.Plan(layout=data.layout, batch_size=batch_size, seed=SEED)
        batches = Prefetcher(plan, ReviewSource(data, plan), 0, [(batch_size,)], epoch=0, step=0, epochs=1 << 40)
        waited = slept = 0.0
        try:
            for _ in range(plan.steps_per_epoch):  # memory is taken and windows are decoded for the first time
                batches.next()
            count = round(STUB_SECONDS / (batch_size * SECONDS_PER_ROW))
            for _ in range(count):
                start = time.perf_counter()
                rows = batches.next().rows
                taken = time.perf_counter()
                time.sleep(rows * SECONDS_PER_ROW)
                waited += taken - start
                slept += time.perf_counter() - taken
        finally:
            batches.close()
    return {"input_part": waited / (waited + slept), "rows_per_second": count * batch_size / (waited + slept)}


def main() -> int:
    """Run the command; returns its exit status: 0 done (targets met or not), 1 failed."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.input", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--workdir", type=Path, default=ROOT / "build" / "bench" / "reader", help="datasets (default: %(default)s)"
    )
    parser.add_argument("--result", metavar="PATH", type=Path, help="write the last line's object to this file too")
    options = parser.parse_args()
    try:
        found = {"reference_model": trained(options.workdir.absolute())}
        found |= {f"stub_batch_{size}": stub(options.workdir.absolute(), size) for size in (512, 2048)}
    except OSError as error:
        print(f"benchmarks.input: {error}", file=sys.stderr)
        return 1
    rows = [(name, f"{item['input_part']:.3%}", f"{item['rows_per_second']:,.0f}", "") for name, item in found.items()]
    print(report.table(("consumer", "input time", "rows/s", ""), rows), end="\n\n")
    judged = [Target("reference_model input time", found["reference_model"]["input_part"], at_most=0.005)]
    judged += [
        Target(f"stub_batch_{size} input time", found[f"stub_batch_{size}"]["input_part"], at_most=0.05)
        for size in (512, 2048)
    ]
    print("targets:", *(target.as_line() for target in judged), sep="\n")
    result = found | report.verdicts(judged) | {"machine": report.machine(("numpy", "torch"))}
    report.finish(result, options.result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
