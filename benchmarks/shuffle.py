"""What a shuffle in windows costs in training quality, against a full one.

    python -m benchmarks.shuffle                      # about 8 minutes
    python -m benchmarks.shuffle --data DATA          # a dataset of your own

The same model is trained with the same seeds on a dataset as python -m mr writes it (rows in the order of their texts'
digests, so already mixed), and on one whose rows were sorted by their stars, the worst order there is. Windows of 1
and 4 chunks, and the whole split; chunks of 256 rows, so that even a small split has many. The figure is the best
validation loss of three epochs, its mean and its spread over the seeds.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

import native
from benchmarks import report
from benchmarks.harness import ROOT
from benchmarks.report import Target
from native.format import DatasetError

CHUNK_ROWS = 256
WINDOWS = {"1 chunk": 1, "4 chunks": 4, "16 chunks": 16, "full": 1 << 30}
SEEDS = (1, 2, 3)
EPOCHS = 3
BATCH_SIZE = 128
MOST_ROWS = 30_000
SPREADS = 2.0
"""a windowed loss may lie above the full shuffle's by this many standard deviations of the seeds' losses, or by 2 %"""


def generated(folder: Path) -> Path:
    """A dataset of generated reviews, made by the real jobs when it is missing."""
    data = folder / "sample"
    if not (data / "dataset.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        reviews = folder / "sample.jsonl.gz"
        for words in (["mr.sample", "--out", str(reviews)], ["mr", str(reviews), "--out", str(data)]):
            subprocess.run([sys.executable, "-m", *words], check=True, stdout=subprocess.DEVNULL, cwd=ROOT)
    return data


def copy_in_small_chunks(source: Path, target: Path, *, by_stars: bool) -> None:
    """The training and validation rows of a dataset in chunks of CHUNK_ROWS, in their order or sorted by stars."""
    columns: dict[str, list[tuple[np.ndarray, ...]]] = {}
    for split in ("train", "validation"):
        with native.open_dataset(source, split) as data:
            part = min(1.0, MOST_ROWS / len(data))
            columns[split] = []
            for bucket, shape in enumerate(data.layout):
                batch = data.read_bucket(bucket, np.arange(int(shape.rows * part)))
                order = np.argsort(batch.stars, kind="stable") if by_stars else np.arange(len(batch))
                columns[split].append((batch.tokens[order], batch.lengths[order], batch.stars[order]))
            bounds, words = data.bounds, data.vocabulary()
    rows = {split: [len(bucket[1]) for bucket in buckets] for split, buckets in columns.items()}
    writer = native.DatasetWriter(target, bounds=bounds, rows=rows, vocabulary=words, chunk_rows=CHUNK_ROWS)
    for split, buckets in columns.items():
        for number, bucket in enumerate(buckets):
            writer.write(split, number, *bucket)
    total = sum(map(sum, rows.values()))
    others = {"duplicates": 0, "empty": 0, "malformed": 0, "without_rating": 0}
    writer.finish(text={"max_length": bounds[-1], "stop_words": []}, counts={"lines": total, "kept": total, **others})


def validation_loss(folder: Path, window: int, seed: int) -> float:
    """Train once in this process; the least loss on the validation split after an epoch."""
    import torch

    from engine.config import ModelConfig
    from engine.input import Prefetcher, ReviewSource
    from engine.losses import ReviewLoss
    from engine.model import ReviewModel
    from engine.plan import Plan
    from engine.validation import measure

    torch.manual_seed(seed)
    with native.open_dataset(folder, "train") as data, native.open_dataset(folder, "validation") as held_out:
        config = ModelConfig(embedding_size=32, hidden_size=16, directions=1, ngrams=0, pooling="max", dropout=0.0)
        model, loss = ReviewModel(config, data.ids), ReviewLoss(config)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
        plan = Plan(layout=data.layout, batch_size=BATCH_SIZE, seed=seed)
        plan.windows = [window] * len(data.layout)
        plan.order = plan.make_order()
        batches = Prefetcher(plan, ReviewSource(data, plan), 0, [(BATCH_SIZE,)], epoch=0, step=0, epochs=EPOCHS)
        best = float("inf")
        for _ in range(EPOCHS):
            for _ in range(plan.steps_per_epoch):
                batch = batches.next()
                optimizer.zero_grad()
                loss(model(*batch.inputs), batch.target).mean().backward()
                optimizer.step()
            best = min(best, measure(model, loss, held_out, 1024, torch.device("cpu"))["loss"])
        batches.close()
    return best


def compare(source: Path, folder: Path) -> dict[str, Any]:
    """All trainings: per order of the rows and window the losses, their mean and standard deviation."""
    found: dict[str, Any] = {}
    for order in ("as written", "sorted by stars"):
        data = folder / order.replace(" ", "-")
        shutil.rmtree(data, ignore_errors=True)
        copy_in_small_chunks(source, data, by_stars=order == "sorted by stars")
        found[order] = {}
        for name, window in WINDOWS.items():
            losses = [validation_loss(data, window, seed) for seed in SEEDS]
            mean, spread = statistics.fmean(losses), statistics.stdev(losses)
            found[order][name] = {"losses": losses, "mean": mean, "spread": spread}
            print(f"{order}, window {name}: validation loss {mean:.4f} +- {spread:.4f}", flush=True)
    return found


def judge(found: dict[str, Any]) -> list[Target]:
    """Rows as python -m mr writes them: no window may cost more than the seeds do."""
    full = found["as written"]["full"]
    allowed = max(SPREADS * full["spread"], 0.02 * full["mean"])
    return [
        Target(f"as written, {name} - full", item["mean"] - full["mean"], at_most=allowed)
        for name, item in found["as written"].items()
        if name != "full"
    ]


def main() -> int:
    """Run the command; returns its exit status: 0 done (targets met or not), 2 unusable data."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.shuffle", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="dataset made by python -m mr (default: generated reviews)")
    parser.add_argument(
        "--workdir", type=Path, default=ROOT / "build" / "bench" / "shuffle", help="datasets (default: %(default)s)"
    )
    parser.add_argument("--result", metavar="PATH", type=Path, help="write the last line's object to this file too")
    options = parser.parse_args()
    try:
        workdir = options.workdir.absolute()
        data = options.data or generated(workdir)
        found = compare(data, workdir)
    except DatasetError as error:
        print(f"benchmarks.shuffle: {error}", file=sys.stderr)
        return 2
    judged = judge(found)
    print("targets:", *(target.as_line() for target in judged), sep="\n")
    digest = native.read_manifest(data)["digest"]
    settings = {"data": "own" if options.data else "generated", "digest": digest, "most_rows_a_split": MOST_ROWS}
    settings |= {"chunk_rows": CHUNK_ROWS, "epochs": EPOCHS, "batch_size": BATCH_SIZE, "seeds": SEEDS}
    result = found | report.verdicts(judged) | {"settings": settings, "machine": report.machine(("numpy", "torch"))}
    report.finish(result, options.result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
