"""What the full data set would take: `python -m benchmarks.preprocess_estimate [benchmarks/results/preprocess.json]`.

From the measured times T1 and T2 of ours on one and two cores, for M megabytes of JSON:

    serial part S = 2 T2 - T1, parallel part P = T1 - S               (seconds; S is at least 0)
    on N cores of this kind   hours = (S + P / N) / M * full / 3600
    on a cluster of N vCPUs   hours = (ENGINE * P / N + S) / M * full / 3600, cost = hours * nodes * price

S is the reading and writing by one process, which on a cluster the primary node does. The figures of a cluster are an
estimate: none was at hand. Its engine is taken to be ENGINE times slower than the local runner on the same cores.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.harness import ROOT

FULL_MB = 92_000
"""142.8 million reviews, plain JSON lines"""
LAPTOP_CORES = (2, 8, 16)
ENGINE = 2.0
"""Spark on the same two cores took 1.8 to 2 times as long as the local runner (prototypes of the three jobs)"""
WORKERS, VCPUS = 8, 4
"""m5.xlarge: 4 vCPUs, 16 GiB; a primary node of the same kind beside the workers"""
PRICE = 0.192 + 0.048
"""US dollars an hour for an m5.xlarge on demand in us-east-1: EC2 and EMR's surcharge. An assumption: AWS's list prices
of 2024, to be checked against its price pages; disks (EBS), S3 and transfers are not counted"""


@dataclass(frozen=True)
class Estimate:
    """What one place takes for the full data set."""

    place: str
    hours: float
    disk_gb: float | None
    """temporary files at their peak, on one machine; None where they are spread"""
    dollars: float | None


def estimates(found: Mapping[str, Any]) -> list[Estimate]:
    """The rows of the table.

    Args:
        found: the result of benchmarks.preprocess.
    """
    ours, one = found["ways"]["ours"], found["ways"]["ours_1_core"]
    megabytes = ours["bytes"] / 1e6
    serial = min(max(0.0, 2 * ours["seconds"] - one["seconds"]), one["seconds"])
    parallel = one["seconds"] - serial
    scale = FULL_MB / megabytes / 3600
    disk = found["peak_temporary_bytes"] / ours["bytes"] * FULL_MB / 1000
    rows = [
        Estimate(f"local, {cores} cores", (serial + parallel / cores) * scale, disk, None) for cores in LAPTOP_CORES
    ]
    hours = (ENGINE * parallel / (WORKERS * VCPUS) + serial) * scale
    rows.append(Estimate(f"EMR, {WORKERS} + 1 m5.xlarge", hours, None, hours * (WORKERS + 1) * PRICE))
    return rows


def table(rows: Sequence[Estimate]) -> str:
    """In Markdown, as it stands in docs/preprocessing.md."""
    lines = ["| where | hours | temporary disk | cost |", "|---|---|---|---|"]
    for row in rows:
        disk = "spread over the nodes" if row.disk_gb is None else f"{row.disk_gb:,.0f} GB"
        cost = "-" if row.dollars is None else f"${row.dollars:.2f}"
        lines.append(f"| {row.place} | {row.hours:.1f} | {disk} | {cost} |")
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> int:
    """Run the command; returns its exit status: 0 done, 2 no usable result file."""
    path = Path(arguments[0]) if arguments else ROOT / "benchmarks" / "results" / "preprocess.json"
    try:
        rows = estimates(json.loads(path.read_text()))
    except (OSError, ValueError, KeyError) as error:
        print(
            f"benchmarks.preprocess_estimate: {path}: no result of benchmarks.preprocess ({error}); "
            "make one with its --result",
            file=sys.stderr,
        )
        return 2
    print(table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
