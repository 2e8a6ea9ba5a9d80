"""Chooses the bounds of the length buckets. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

STEP = 8
"""tokens; every bound but the last is a multiple of it"""
MAX_BUCKETS = 12
MAX_WASTE = 0.10
"""share of the padded tokens that may be padding"""


def padding_waste(lengths: Mapping[int, int], bounds: Sequence[int]) -> float:
    """Share of padding in the padded tokens, 0 without rows.

    Args:
        lengths: rows per length; the lengths are in tokens, 1..bounds[-1].
        bounds: ascending.
    """
    sizes = np.array(list(lengths), np.int64)
    rows = np.array(list(lengths.values()), np.int64)
    padded = int(np.asarray(bounds, np.int64)[np.searchsorted(bounds, sizes)] @ rows)
    return 1 - int(sizes @ rows) / padded if padded else 0.0


def choose_bounds(lengths: Mapping[int, int], longest: int, max_length: int) -> tuple[int, ...]:
    """The fewest bounds, at most MAX_BUCKETS, whose padding stays under MAX_WASTE; with the least padding.

    Exact, by dynamic programming over all multiples of STEP.

    Args:
        lengths: rows per length in tokens; their padding is what counts.
        longest: the longest row of the whole dataset, in tokens.
        max_length: in tokens; caps the last bound.
    """
    last = min(-(-longest // STEP) * STEP, max_length)
    edges = np.array([0, *range(STEP, last, STEP), last], np.int64)
    rows = np.zeros(len(edges), np.int64)
    for length, count in lengths.items():
        rows[np.searchsorted(edges, length)] += count
    below = np.cumsum(rows)  # rows that are not longer than the edge
    tokens = sum(length * count for length, count in lengths.items())
    # best[i]: fewest padded tokens of the rows up to edge i, with the buckets so far; came[k][i]: the bound before it
    infinite = np.iinfo(np.int64).max // 2
    best = np.full(len(edges), infinite)
    best[0] = 0
    came: list[np.ndarray] = []
    for _ in range(min(MAX_BUCKETS, len(edges) - 1)):
        step = np.zeros(len(edges), np.int64)
        new = np.full(len(edges), infinite)
        for i in range(1, len(edges)):
            costs = best[:i] + (below[i] - below[:i]) * edges[i]
            step[i] = int(np.argmin(costs))
            new[i] = min(int(costs[step[i]]), infinite)
        came.append(step)
        best = new
        if best[-1] - tokens < MAX_WASTE * best[-1]:
            break
    at, bounds = len(edges) - 1, []
    for step in reversed(came):
        bounds.append(int(edges[at]))
        at = int(step[at])
    return tuple(reversed(bounds))
