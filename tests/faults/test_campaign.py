"""A short round of the faults that `make faults` counts by the hundred."""

from __future__ import annotations

import json
import subprocess
import sys

from jobs import ROOT, environment


def test_a_short_round_is_survived():
    short = ["--kills", "4", "--terms", "2", "--stops", "1", "--cuts", "0", "--soak-minutes", "0.5", "--seed", "1"]
    done = subprocess.run(
        [sys.executable, "tests/faults/campaign.py", *short],
        env=environment(),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    survived = {name: (one["survived"], one["wanted"]) for name, one in found.items()}
    assert survived == {"kills": (4, 4), "terms": (2, 2), "stops": (1, 1), "cuts": (0, 0), "soak": (1, 1)}
    assert set(found["kills"]["kinds"]) == {"compute", "allreduce", "checkpoint", "rebalance"}
