"""What it costs to watch a run: steps with the live view on a terminal against steps without it.

    python -m benchmarks.watching        # about a minute

One rank trains the reference LSTM (100/32/2, 512 rows of 100 tokens, one thread) with standard error on a pty that is
read all the time. The view is there for some steps and gone for as many, again and again, so that whatever slows the
machine for a while slows both; the figure is the median step with the view over the median step without. Beside it, the
processor time of the view's thread as a part of the time that it was there, which noise of the machine touches less;
and what one picture takes for 40 and for 1,000 ranks.
"""

from __future__ import annotations

import argparse
import json
import os
import pty
import subprocess
import sys
import threading
import time
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import report
from benchmarks.harness import ROOT, THREADS
from benchmarks.report import Target

ROWS, LENGTH, WORDS = 512, 100, 10_000
PICTURES = 50


def watched_steps(windows: int, steps: int) -> dict[str, float]:
    """Train with the view on and off in turns: seconds of the median step of each, the thread's part of the time."""
    import torch
    from torch import nn
    from torch.utils.data import TensorDataset

    import engine
    from engine.display import Display
    from engine.watch import Watch

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(WORDS, 100)
            self.cells = nn.LSTM(100, 32, num_layers=2, batch_first=True)
            self.head = nn.Linear(32, 2)

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            scores: torch.Tensor = self.head(self.cells(self.embedding(tokens))[0][:, -1])
            return scores

    session = engine.init(device="cpu", threads=1)
    torch.manual_seed(7)
    display, watch = Display(True), Watch()
    seconds: dict[bool, list[float]] = {True: [], False: []}
    shown, shown_since, thread_seconds, shown_seconds = True, time.perf_counter(), 0.0, 0.0
    count, began = 0, time.perf_counter()

    def timed(*cost: float) -> None:
        nonlocal shown, shown_since, thread_seconds, shown_seconds, count, began
        count += 1
        if count % steps > 2:  # a window's first steps pay for the change
            seconds[shown].append(time.perf_counter() - began)
        if count % steps == 0:
            if shown:
                thread_seconds += view_thread_seconds()
                shown_seconds += time.perf_counter() - shown_since
                display.close()
            else:
                display.start_epoch(1, 1, windows * steps, count)
                shown_since = time.perf_counter()
            shown = not shown
        began = time.perf_counter()

    total = windows * steps * ROWS
    data = TensorDataset(torch.randint(WORDS, (total, LENGTH)), torch.randint(2, (total,)))
    model = Model()
    trainer = engine.Trainer(
        model,
        nn.CrossEntropyLoss(reduction="none"),
        torch.optim.Adam(model.parameters()),
        engine.Plan(rows=total, batch_size=ROWS, seed=7),
        session,
        hooks=engine.Hooks(display=display, watch=watch, timed=timed),
    )
    display.watch(session, watch, lambda: trainer.shares)
    trainer.fit(data, 1)
    return {
        "step_with_view": median(seconds[True]),
        "step_without_view": median(seconds[False]),
        "thread_part": thread_seconds / shown_seconds,
    } | {f"picture_of_{ranks}_ranks": picture_seconds(ranks) for ranks in (40, 1000)}


def view_thread_seconds() -> float:
    """Processor time that the view's thread has taken."""
    [thread] = [thread for thread in threading.enumerate() if thread.name == "engine-view"]
    fields = Path(f"/proc/self/task/{thread.native_id}/schedstat").read_text().split()
    return int(fields[0]) / 1e9


def picture_seconds(ranks: int) -> float:
    """What one picture takes, from the ranks' reports to text."""
    from engine.view import Renderer, Snapshot
    from engine.watch import Board, Report, Watch

    board, renderer = Board(Watch(), [f"node-{rank // 8}" for rank in range(ranks)]), Renderer()
    for steps in (1, 2):
        for rank in range(ranks):
            board.hear(rank, Report(steps, steps * (1 + rank / ranks), 0.01, 0.5, memory=1 << 30).to_bytes())
    shares = [512] * ranks
    start = time.thread_time()
    for _ in range(PICTURES):
        renderer.lines(Snapshot(1, 2, 3, 4, 0.5, 0.5, 1e4, 60.0, 600.0, ranks=board.figures(shares)), 100, 40)
    return (time.thread_time() - start) / PICTURES


def measured(windows: int, steps: int) -> dict[str, float]:
    """The figures, from a process of their own on a terminal."""
    terminal, stderr = pty.openpty()
    call = f"watched_steps({windows}, {steps})"
    code = f"import json; from benchmarks.watching import watched_steps; print(json.dumps({call}))"
    job = subprocess.Popen(
        [sys.executable, "-c", code],
        env=os.environ | dict.fromkeys(THREADS, "1") | {"TERM": "xterm-256color"},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
    )
    os.close(stderr)
    shown: list[bytes] = []
    reader = threading.Thread(target=_read, args=(terminal, shown))
    reader.start()
    output, _ = job.communicate()
    reader.join()
    os.close(terminal)
    if job.returncode:
        raise OSError(
            f"training failed with status {job.returncode}: {b''.join(shown)[-500:].decode(errors='replace')}"
        )
    if not any(b"rows/s" in piece for piece in shown):
        raise OSError("no view was seen on the terminal")
    figures: dict[str, float] = json.loads(output.splitlines()[-1])
    return figures


def _read(terminal: int, shown: list[bytes]) -> None:
    while True:
        try:
            piece = os.read(terminal, 1 << 16)
        except OSError:  # the last one who could write has ended
            return
        if not piece:
            return
        shown.append(piece)


def main() -> int:
    """Run the command; returns its exit status: 0 done (targets met or not), 1 failed, 2 wrong usage."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.watching", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--windows", type=int, default=24, help="with the view and without (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=25, help="of a window (default: %(default)s)")
    parser.add_argument("--result", metavar="PATH", type=Path, help="write the last line's object to this file too")
    options = parser.parse_args()
    if options.windows < 2 or options.steps < 5:
        print("benchmarks.watching: --windows must be at least 2 and --steps at least 5", file=sys.stderr)
        return 2
    try:
        found: dict[str, Any] = dict(measured(options.windows, options.steps))
    except OSError as error:
        print(f"benchmarks.watching: {error}", file=sys.stderr)
        return 1
    rows = [
        (name.replace("_", " "), f"{value * 1000:,.3f}", "") for name, value in found.items() if name != "thread_part"
    ]
    print(report.table(("", "ms", ""), rows), end="\n\n")
    found["ratio"] = found["step_with_view"] / found["step_without_view"]
    judged = [
        Target("a step with the view / without", found["ratio"], at_most=1.01),
        Target("part of the time that the view's thread takes", found["thread_part"], at_most=0.01),
    ]
    print("targets:", *(target.as_line() for target in judged), sep="\n")
    result = found | report.verdicts(judged) | {"machine": report.machine(("torch", "rich"))}
    report.finish(result, options.result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
