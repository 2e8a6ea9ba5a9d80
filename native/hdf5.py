"""What is read through libhdf5: the chunk index of a part that has no index file, and chunks that only it can decode.

libhdf5 can crash on damaged metadata, so whoever calls these functions has compared the file's bytes with their digest
first. What a file with right digests could still ask for is refused here: bytes that lie elsewhere (external storage,
virtual datasets, links that are not plain ones) and datasets of another type or shape than the format's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import hdf5plugin
import numpy as np

from native.format import MANIFEST, DatasetError, group_name
from native.index import MAX_CHUNKS, ChunkIndex

LZ4 = hdf5plugin.LZ4.filter_id
FILTER_BITS = {LZ4: 1, h5py.h5z.FILTER_SHUFFLE: 2}
"""bits of ChunkIndex.filters"""
TOKEN_KINDS = {"uint16": "<u2", "uint32": "<u4"}


class StoredChunk(NamedTuple):
    """A chunk as libhdf5 reads it."""

    tokens: np.ndarray
    lengths: np.ndarray
    stars: np.ndarray
    stored: bytes
    """what the chunk's checksum is of"""


def read_hdf5_index(
    path: Path, bounds: Sequence[int], chunk_rows: int, token_type: str, source: str | None = None
) -> list[ChunkIndex]:
    """Take the chunk index of each bucket of a part.

    Args:
        path: the part, as errors name it.
        bounds: padded length of each bucket.
        chunk_rows: rows of a full chunk.
        token_type: "uint16" or "uint32".
        source: what libhdf5 opens, where it is not `path`.

    Raises:
        DatasetError: not HDF5, or types, shapes or layout are not those of the format.
    """
    with _opened(f"{path}", source or str(path)) as file:
        return [_bucket_index(f"{path}", file, bound, chunk_rows, token_type) for bound in bounds]


def read_hdf5_chunk(where: str, source: str, bound: int, start: int, rows: int) -> StoredChunk:
    """Read a chunk of a part whose index read_hdf5_index has taken.

    Args:
        where: the chunk, as errors name it.
        source: what libhdf5 opens.
        bound: the bucket's.
        start: the chunk's first row within the part.
        rows: rows of the chunk.

    Raises:
        DatasetError: libhdf5 cannot.
    """
    with _opened(where, source) as file:
        group = file[group_name(bound)]
        tokens, lengths, stars = (group[name][start : start + rows] for name in ("tokens", "lengths", "stars"))
        chunked = group["tokens"].chunks is not None
        stored = group["tokens"].id.read_direct_chunk((start, 0))[1] if chunked else tokens.tobytes()
    return StoredChunk(tokens, lengths, stars, stored)


@contextmanager
def _opened(where: str, source: str) -> Iterator[h5py.File]:
    try:
        with h5py.File(source, "r") as file:
            yield file
    except DatasetError:
        raise
    except (OSError, RuntimeError, LookupError, ArithmeticError, TypeError, ValueError, MemoryError) as error:
        text = " ".join(str(error).split())
        raise DatasetError(
            f"{where}: libhdf5 cannot read it ({text}); copy the file again or make the dataset again"
        ) from None


def _member(where: str, group: h5py.Group, name: str, kind: type) -> Any:
    """A group or dataset all of whose bytes lie in this file."""
    place = f"{where}: {group.name.rstrip('/')}/{name}"
    if not group.id.links.exists(name.encode()):
        raise DatasetError(f"{place} is missing; the dataset must be made again")
    if group.id.links.get_info(name.encode()).type != h5py.h5l.TYPE_HARD:
        raise DatasetError(f"{place} is a link to another place, which is not followed; the dataset must be made again")
    found = group[name]
    if not isinstance(found, kind):
        raise DatasetError(f"{place} is not a {kind.__name__.lower()}; the dataset must be made again")
    if isinstance(found, h5py.Dataset) and (found.is_virtual or found.external):
        raise DatasetError(f"{place} keeps its values in other files, which are not read; make the dataset again")
    return found


def _bucket_index(path: str, file: h5py.File, bound: int, chunk_rows: int, token_type: str) -> ChunkIndex:
    group = _member(path, file, group_name(bound), h5py.Group)
    tokens, lengths, stars = (_member(path, group, name, h5py.Dataset) for name in ("tokens", "lengths", "stars"))
    rows = len(lengths) if len(lengths.shape) == 1 else 0
    if -(-rows // chunk_rows) > MAX_CHUNKS:
        raise DatasetError(f"{path}: {group.name} has {rows} rows, too many for a part; make the dataset again")
    chunks = -(-rows // chunk_rows)
    checksums, row_checksums = (_member(path, group, name, h5py.Dataset) for name in ("checksums", "row_checksums"))
    for dataset, kind, shape in (
        (tokens, TOKEN_KINDS[token_type], (rows, bound)),
        (lengths, "<u2", (rows,)),
        (stars, "|u1", (rows,)),
        (checksums, "<u8", (chunks,)),
        (row_checksums, "<u8", (chunks,)),
    ):
        if dataset.dtype.str != kind or dataset.shape != shape:
            raise DatasetError(
                f"{path}: {dataset.name} is {dataset.dtype.str} {list(dataset.shape)}, where {MANIFEST} and its "
                f"neighbours ask for {kind} {list(shape)}; the dataset must be made again"
            )
    offsets: np.ndarray = np.full(chunks, -1, np.int64)
    sizes: np.ndarray = np.zeros(chunks, np.int64)
    filters: np.ndarray = np.zeros(chunks, np.uint8)
    if rows:
        _locate_chunks(path, tokens, chunk_rows, offsets, sizes, filters)
    return ChunkIndex(
        offsets,
        sizes,
        filters,
        checksums[:],
        row_checksums[:],
        _contiguous_offset(lengths),
        _contiguous_offset(stars),
        rows,
    )


def _contiguous_offset(dataset: h5py.Dataset) -> int:
    # get_offset() of a dataset without storage has been seen to return nonsense: ask for the storage first.
    if dataset.chunks is not None or dataset.id.get_storage_size() != dataset.size * dataset.dtype.itemsize:
        return -1
    offset = dataset.id.get_offset()
    return -1 if offset is None else int(offset)


def _locate_chunks(
    path: str, tokens: h5py.Dataset, chunk_rows: int, offsets: np.ndarray, sizes: np.ndarray, filters: np.ndarray
) -> None:
    properties = tokens.id.get_create_plist()
    pipeline = [properties.get_filter(place)[0] for place in range(properties.get_nfilters())]
    if tokens.chunks is None:
        start = _contiguous_offset(tokens)
        if start >= 0 and not pipeline:
            row_bytes = tokens.shape[1] * tokens.dtype.itemsize
            first = np.arange(len(offsets), dtype=np.int64) * chunk_rows
            offsets[:] = start + first * row_bytes
            sizes[:] = np.minimum(chunk_rows, tokens.shape[0] - first) * row_bytes
        return
    if tokens.chunks != (chunk_rows, tokens.shape[1]):
        raise DatasetError(
            f"{path}: {tokens.name} has chunks {tokens.chunks}, not whole rows ({chunk_rows}, {tokens.shape[1]}) as "
            f"{MANIFEST} says; the dataset must be made again"
        )
    if pipeline not in ([], [LZ4], [h5py.h5z.FILTER_SHUFFLE], [h5py.h5z.FILTER_SHUFFLE, LZ4]):
        return  # other filters: h5py decodes them
    bits = [FILTER_BITS[number] for number in pipeline]

    def note(info: Any) -> None:
        chunk = info.chunk_offset[0] // chunk_rows
        offsets[chunk] = info.byte_offset
        sizes[chunk] = info.size
        # The mask's bits tell which filters of the pipeline were left out for this chunk.
        filters[chunk] = sum(bit for place, bit in enumerate(bits) if not info.filter_mask >> place & 1)

    tokens.id.chunk_iter(note)
