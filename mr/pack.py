"""Writes the dataset from the sorted records of the encode job, streaming."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import groupby, islice
from pathlib import Path

import numpy as np

from mr.records import decode_ids, merge_sorted
from native.text import SPLITS, UNKNOWN_ID
from native.writer import DatasetWriter

ROWS_A_WRITE = 4096


def pack(
    records: Path,
    writer: DatasetWriter,
    bounds: Sequence[int],
    item_bytes: int,
    progress: Callable[[int], None] = lambda rows: None,
) -> dict[str, int]:
    """Write all rows in their final order: split, bucket, digest.

    Args:
        records: output folder of the encode job.
        writer: a new writer; its finish is left to the caller.
        bounds: of the buckets, in tokens.
        item_bytes: 2 or 4, of a token id.
        progress: called now and then with the rows so far.

    Returns:
        Tokens per split that are unknown words.

    Raises:
        ValueError: the records are not sorted.
    """
    unknown: Counter[str] = Counter(dict.fromkeys(SPLITS, 0))
    done = 0
    for place, group in groupby(merge_sorted(records), key=lambda record: record[0][:3]):
        split, bound = SPLITS[int(place[:1])], bounds[int(place[1:])]
        while rows := list(islice(group, ROWS_A_WRITE)):
            encoded = [decode_ids(value[1:]) for _, value in rows]
            padded = b"".join(row.ljust(bound * item_bytes, b"\0") for row in encoded)
            tokens = np.frombuffer(padded, f"<u{item_bytes}").reshape(len(rows), bound)
            lengths = np.array([len(row) // item_bytes for row in encoded], np.uint16)
            stars = np.array([value[0] - ord("0") for _, value in rows], np.uint8)
            writer.write(split, int(place[1:]), tokens, lengths, stars)
            unknown[split] += int((tokens == UNKNOWN_ID).sum())
            done += len(rows)
            progress(done)
    return dict(unknown)
