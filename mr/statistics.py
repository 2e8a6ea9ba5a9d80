"""The figures of a dataset that stand in its manifest, outside the digest. Pure; equal input gives equal figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mr.buckets import padding_waste
from mr.counted import Counted
from native.text import SPLITS

PERCENTILES = (50, 90, 99)


def statistics(
    counted: Counted, bounds: Sequence[int], max_length: int, unknown: Mapping[str, int], own_vocabulary: bool
) -> dict[str, Any]:
    """Figures for "statistics" of the manifest.

    Args:
        counted: from the count job.
        bounds: of the buckets, in tokens.
        max_length: of the rows, in tokens.
        unknown: tokens per split that are unknown words.
        own_vocabulary: whether the vocabulary was counted here; of another one no coverage is known but `unknown`.
    """
    tokens = {split: _tokens(counted.lengths[split]) for split in SPLITS}
    known = sum(count for _, count in counted.words)
    return {
        "malformed_reasons": counted.reasons,
        "lengths": {split: lengths_summary(counted.lengths[split], max_length) for split in SPLITS},
        "tokens": tokens,
        "unknown_tokens": dict(unknown),
        "unknown_share": {split: _share(unknown[split], tokens[split]) for split in SPLITS},
        "padding_waste": {split: round(padding_waste(counted.lengths[split], bounds), 6) for split in SPLITS},
        "training_words": {
            "all": counted.all_words,
            "different": counted.different_words,
            "in_vocabulary": known if own_vocabulary else None,
            "coverage": _share(known, counted.all_words) if own_vocabulary else None,
        },
    }


def lengths_summary(lengths: Mapping[int, int], max_length: int) -> dict[str, float]:
    """Mean, percentiles and maximum of the rows' lengths in tokens, and how many rows have max_length; 0 without rows.

    Args:
        lengths: rows per length.
        max_length: where longer texts were cut.
    """
    rows = sum(lengths.values())
    summary: dict[str, float] = {"mean": round(_tokens(lengths) / rows, 2) if rows else 0.0}
    for percent in PERCENTILES:
        summary[f"p{percent}"] = _percentile(lengths, percent)
    return summary | {"longest": max(lengths, default=0), "at_max_length": lengths.get(max_length, 0)}


def _percentile(lengths: Mapping[int, int], percent: int) -> int:
    """The shortest length that so many percent of the rows do not exceed."""
    rows, below = sum(lengths.values()), 0
    for length in sorted(lengths):
        below += lengths[length]
        if below * 100 >= rows * percent:
            return length
    return 0


def _tokens(lengths: Mapping[int, int]) -> int:
    return sum(length * count for length, count in lengths.items())


def _share(part: int, whole: int) -> float:
    return round(part / whole, 6) if whole else 0.0
