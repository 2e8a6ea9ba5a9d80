"""The table at the end: what happened to every line, and what the dataset looks like. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from native.format import COUNT_FIELDS
from native.text import SPLITS


def report(manifest: Mapping[str, Any]) -> str:
    """The table as text.

    Args:
        manifest: of the dataset, with "inputs" and "statistics".
    """
    lines = [*_counts(manifest), "", *_splits(manifest), "", *_words(manifest)]
    return "\n".join(lines) + "\n"


def _counts(manifest: Mapping[str, Any]) -> list[str]:
    files = [*manifest["inputs"], {"file": "all", **manifest["counts"]}]
    width = max(len(file["file"]) for file in files)
    head = f"{'file':<{width}}" + "".join(f"{field.replace('_', ' '):>16}" for field in COUNT_FIELDS)
    rows = [f"{file['file']:<{width}}" + "".join(f"{file[field]:>16,}" for field in COUNT_FIELDS) for file in files]
    return [head, *rows]


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


def _words(manifest: Mapping[str, Any]) -> list[str]:
    words = manifest["statistics"]["training_words"]
    bounds = " ".join(map(str, manifest["bucket_bounds"]))
    stored, *raw = (manifest["storage"][name] for name in ("stored_bytes", "bucket_bytes", "longest_bytes"))
    by_bucket, by_longest = (f"{stored / max(size, 1):.1%}" for size in raw)
    covered = f" ({words['in_vocabulary'] / words['all']:.2%} of the training text)" if words["all"] else ""
    return [
        f"vocabulary: {manifest['vocabulary']['words']:,} of {words['different']:,} different words{covered}",
        f"buckets: padded lengths {bounds}",
        f"tokens on disk: {stored / 1e6:.1f} MB, {by_bucket} of {manifest['token_type']} numbers at these lengths, "
        f"{by_longest} at length {manifest['bucket_bounds'][-1]} for all",
        f"digest: {manifest['digest']}",
    ]
