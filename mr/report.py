"""The tables at the end: what happened to every line, and what the dataset looks like. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from native.format import COUNT_FIELDS
from native.text import SPLITS

_SHOWN_REASONS = 8
_LENGTH_WIDTH = 13


def report(manifest: Mapping[str, Any]) -> str:
    """The tables as text.

    Args:
        manifest: of the dataset, with "inputs" and "statistics".
    """
    lines = [*_counts(manifest), "", *_splits(manifest), "", *_lengths(manifest), "", *_words(manifest)]
    return "\n".join(lines) + "\n"


def _counts(manifest: Mapping[str, Any]) -> list[str]:
    files = [*manifest["inputs"], {"file": "all", **manifest["counts"]}]
    width = max(len(file["file"]) for file in files)
    head = f"{'file':<{width}}" + "".join(f"{field.replace('_', ' '):>16}" for field in COUNT_FIELDS)
    rows = [f"{file['file']:<{width}}" + "".join(f"{file[field]:>16,}" for field in COUNT_FIELDS) for file in files]
    reasons = manifest["statistics"]["malformed_reasons"]
    told = [f"malformed: {reason}: {count:,}" for reason, count in list(reasons.items())[:_SHOWN_REASONS]]
    others = sum(reasons.values()) - sum(list(reasons.values())[:_SHOWN_REASONS])
    return [head, *rows, *told, *([f"malformed: other reasons: {others:,}"] if others else [])]


def _splits(manifest: Mapping[str, Any]) -> list[str]:
    lines = [
        f"{'split':<12}{'rows':>12}"
        + "".join(f"{f'{stars} star' + 's' * (stars > 1):>10}" for stars in range(1, 6))
        + f"{'padding':>10}{'unknown words':>16}"
    ]
    statistics = manifest["statistics"]
    for split in SPLITS:
        rows, stars = manifest["splits"][split]["rows"], manifest["splits"][split]["stars"]
        shares = "".join(f"{count / max(rows, 1):>10.1%}" for count in stars)
        lines.append(
            f"{split:<12}{rows:>12,}{shares}{statistics['padding_waste'][split]:>10.1%}"
            f"{statistics['unknown_share'][split]:>16.2%}"
        )
    return lines


def _lengths(manifest: Mapping[str, Any]) -> list[str]:
    cut = f"{manifest['text']['max_length']} or more"
    head = ("mean", "median", "90 % up to", "99 % up to", "longest", cut)
    lines = [f"{'words a row':<12}" + "".join(f"{title:>{_LENGTH_WIDTH}}" for title in head)]
    for split in SPLITS:
        found, rows = manifest["statistics"]["lengths"][split], manifest["splits"][split]["rows"]
        cells = [f"{found['mean']:.1f}", *(f"{found[name]:,}" for name in ("p50", "p90", "p99", "longest"))]
        cells.append(f"{found['at_max_length'] / max(rows, 1):.1%}")
        lines.append(f"{split:<12}" + "".join(f"{cell:>{_LENGTH_WIDTH}}" for cell in cells))
    return lines


def _words(manifest: Mapping[str, Any]) -> list[str]:
    words = manifest["statistics"]["training_words"]
    size = manifest["vocabulary"]["words"]
    if words["coverage"] is None:
        vocabulary = f"vocabulary: {size:,} words of another dataset"
    else:
        vocabulary = f"vocabulary: {size:,} of {words['different']:,} different words"
        vocabulary += f", {words['coverage']:.2%} of the training text"
    bounds = " ".join(map(str, manifest["bucket_bounds"]))
    stored, *raw = (manifest["storage"][name] for name in ("stored_bytes", "bucket_bytes", "longest_bytes"))
    by_bucket, by_longest = (f"{stored / max(size, 1):.1%}" for size in raw)
    return [
        vocabulary,
        f"buckets: padded lengths {bounds}",
        f"tokens on disk: {stored / 1e6:.1f} MB, {by_bucket} of {manifest['token_type']} numbers at these lengths, "
        f"{by_longest} at length {manifest['bucket_bounds'][-1]} for all",
        f"digest: {manifest['digest']}",
    ]
