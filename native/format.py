"""The dataset format (docs/format.md): what is in the folder, how it is written, how its manifest is checked.

    dataset.json      manifest, written last: a folder without it is not a dataset
    vocabulary.txt    one word a line; line i is the word of id i + 2 (0 pads, 1 is an unknown word)
    train/ validation/ test/   part-NNNNN.h5, each with one group per length bucket ("0032"):
        tokens    uint16|uint32 [rows, L]  chunks (R, L), byte shuffle and LZ4; padded on the right with 0
        lengths   uint16 [rows]            1..L
        stars     uint8  [rows]            1..5
        checksums uint64 [chunks]          XXH3 of each token chunk's stored bytes
        row_checksums uint64 [chunks]      XXH3 of the chunk's lengths bytes followed by its stars bytes

The digests form a tree: the manifest's digest covers each part's digest and index digest, the index digest covers
the place and the checksums of every chunk, and the checksums cover every byte that training reads.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin
import numpy as np

from native.text import SPLITS

FORMAT_NAME = "reviews-hdf5"
FORMAT_VERSION = 1
MANIFEST = "dataset.json"
VOCABULARY = "vocabulary.txt"
MAX_BOUND = 9_999
MAX_CHUNK_ROWS = 1 << 20
LZ4 = hdf5plugin.LZ4.filter_id
FILTER_BITS = {LZ4: 1, h5py.h5z.FILTER_SHUFFLE: 2}
"""bits of ChunkIndex.filters"""
COUNT_FIELDS = ("lines", "kept", "duplicates", "empty", "malformed", "without_rating")


class DatasetError(ValueError):
    """A dataset that is missing, damaged or not what it says; the message names the file and the place."""


@dataclass(frozen=True)
class BucketShape:
    """The shape of one length bucket of a split; all that the plan needs to know of the data."""

    bound: int
    """padded length L, in tokens"""
    rows: int
    chunk_rows: int
    """rows of a full chunk; only the last chunk of the bucket may have fewer"""
    row_bytes: int
    """bytes of one decoded row"""


@dataclass(frozen=True)
class ChunkIndex:
    """Where the chunks of one bucket lie in one part; arrays have one entry per chunk."""

    offsets: np.ndarray
    """int64: byte offset of the stored token chunk in the file; -1: only libhdf5 can read it"""
    sizes: np.ndarray
    """int64: stored bytes"""
    filters: np.ndarray
    """uint8: bit 0 LZ4, bit 1 bytes split into planes (HDF5's shuffle filter)"""
    checksums: np.ndarray
    row_checksums: np.ndarray
    lengths_offset: int
    stars_offset: int
    rows: int

    def update_digest(self, digest: Any) -> None:
        """Feed every field to a hashlib digest, in a fixed byte order."""
        for array, kind in (
            (self.offsets, "<i8"),
            (self.sizes, "<i8"),
            (self.filters, "u1"),
            (self.checksums, "<u8"),
            (self.row_checksums, "<u8"),
        ):
            digest.update(np.ascontiguousarray(array, dtype=kind).tobytes())
        digest.update(np.array([self.lengths_offset, self.stars_offset, self.rows], "<i8").tobytes())


def group_name(bound: int) -> str:
    """The HDF5 group of the bucket with this bound."""
    return f"{bound:04d}"


def part_rows(rows: int, chunk_rows: int, parts: int) -> list[int]:
    """Rows of a bucket per part, cut at whole chunks; only the bucket's last chunk may be short."""
    chunks = -(-rows // chunk_rows)
    edges = [min(rows, chunks * part // parts * chunk_rows) for part in range(parts + 1)]
    return [stop - start for start, stop in pairwise(edges)]


def read_chunk_index(group: h5py.Group, bound: int, chunk_rows: int) -> ChunkIndex:
    """Take the chunk index of one bucket through h5py, once.

    Raises:
        DatasetError: dtype, shape or layout are not those of the format.
    """
    tokens, lengths, stars = (group.get(name) for name in ("tokens", "lengths", "stars"))
    for name, dataset, kinds in (
        ("tokens", tokens, ("<u2", "<u4")),
        ("lengths", lengths, ("<u2",)),
        ("stars", stars, ("|u1",)),
    ):
        if not isinstance(dataset, h5py.Dataset) or dataset.dtype.str not in kinds:
            raise DatasetError(f"{group.file.filename}: {group.name}/{name} is missing or not of type {kinds}")
    rows = int(tokens.shape[0])
    if tokens.shape != (rows, bound) or lengths.shape != (rows,) or stars.shape != (rows,):
        raise DatasetError(
            f"{group.file.filename}: {group.name}: the shapes of tokens {tokens.shape}, lengths "
            f"{lengths.shape} and stars {stars.shape} do not belong together (bound {bound})"
        )
    chunks = -(-rows // chunk_rows)
    checksums = {}
    for name in ("checksums", "row_checksums"):
        dataset = group.get(name)
        if not isinstance(dataset, h5py.Dataset) or dataset.dtype.str != "<u8" or dataset.shape != (chunks,):
            raise DatasetError(f"{group.file.filename}: {group.name}/{name} is missing or not uint64[{chunks}]")
        checksums[name] = dataset[:]
    offsets = np.full(chunks, -1, np.int64)
    sizes = np.zeros(chunks, np.int64)
    filters = np.zeros(chunks, np.uint8)
    if rows:
        _locate_chunks(tokens, chunk_rows, offsets, sizes, filters)
    return ChunkIndex(
        offsets,
        sizes,
        filters,
        checksums["checksums"],
        checksums["row_checksums"],
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
    tokens: h5py.Dataset, chunk_rows: int, offsets: np.ndarray, sizes: np.ndarray, filters: np.ndarray
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
            f"{tokens.file.filename}: {tokens.name} has chunks {tokens.chunks}, not whole rows "
            f"({chunk_rows}, {tokens.shape[1]}) as dataset.json says"
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


def json_digest(value: object) -> str:
    """SHA-256 of a value's canonical JSON, in hexadecimal."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


DIGEST_FIELDS = (
    "format",
    "version",
    "text",
    "vocabulary",
    "bucket_bounds",
    "chunk_rows",
    "token_type",
    "parts",
    "splits",
)


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read and check dataset.json.

    Raises:
        DatasetError: no manifest, not JSON, another format or version, missing fields, or a digest that
            does not fit the fields.
    """
    path = Path(folder) / MANIFEST
    try:
        manifest = json.loads(path.read_bytes())
    except FileNotFoundError:
        if not Path(folder).exists():
            raise DatasetError(
                f"{folder}: there is no such folder; make a dataset with python -m mr INPUT..."
            ) from None
        raise DatasetError(
            f"{folder}: no {MANIFEST}, so this is not a finished dataset; make one with "
            f"python -m mr INPUT... --out {folder}"
        ) from None
    except (OSError, ValueError) as error:
        raise DatasetError(f"{path}: not readable as JSON ({error}); the dataset must be made again") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT_NAME:
        raise DatasetError(f"{path}: not a {FORMAT_NAME} manifest; name a folder made by python -m mr")
    if manifest.get("version") != FORMAT_VERSION:
        raise DatasetError(f"{path}: format version {manifest.get('version')}, this program reads {FORMAT_VERSION}")
    missing = [field for field in (*DIGEST_FIELDS, "digest", "counts") if field not in manifest]
    if missing:
        raise DatasetError(f"{path}: the fields {', '.join(missing)} are missing; the dataset must be made again")
    problem = _problem_of(manifest)
    if problem:
        raise DatasetError(f"{path}: {problem}; the dataset must be made again")
    if json_digest({field: manifest[field] for field in DIGEST_FIELDS}) != manifest["digest"]:
        raise DatasetError(f"{path}: its digest does not fit its content: the file was changed or damaged")
    return manifest


def _problem_of(manifest: Mapping[str, Any]) -> str | None:
    """What is wrong with the values that sizes are computed from; None when nothing is."""
    bounds, parts, splits = manifest["bucket_bounds"], manifest["parts"], manifest["splits"]
    if not _is_count(manifest["chunk_rows"], 1, MAX_CHUNK_ROWS):
        return f"chunk_rows {manifest['chunk_rows']!r} is not a number from 1 to {MAX_CHUNK_ROWS}"
    if not isinstance(bounds, list) or not bounds or not all(_is_count(bound, 1, MAX_BOUND) for bound in bounds):
        return f"bucket_bounds must be numbers from 1 to {MAX_BOUND}"
    if len({part["path"] for part in parts if isinstance(part, dict) and "path" in part}) != len(parts):
        return "parts must each have path, digest and index_digest, and each path once"
    if bounds != sorted(set(bounds)):
        return "bucket_bounds do not ascend"
    if manifest["token_type"] not in ("uint16", "uint32"):
        return f"token_type {manifest['token_type']!r} is neither uint16 nor uint32"
    vocabulary = manifest["vocabulary"]
    if not isinstance(vocabulary, dict) or not _is_count(vocabulary.get("words"), 0, (1 << 31) - 3):
        return "vocabulary has no usable number of words"
    if not isinstance(splits, dict) or any(not _is_split(splits.get(split), len(bounds)) for split in SPLITS):
        return "splits must give rows, bucket_rows and stars of train, validation and test"
    keys = ("path", "digest", "index_digest")
    if not isinstance(parts, list) or not all(
        isinstance(part, dict) and all(isinstance(part.get(key), str) for key in keys) for part in parts
    ):
        return "parts must each have path, digest and index_digest"
    for part in parts:
        split, _, name = part["path"].partition("/")
        if split not in SPLITS or not name or "/" in name or name.startswith("."):
            return f"the part {part['path']!r} does not lie in a split's folder"
    missing = [split for split in SPLITS if not any(part["path"].startswith(f"{split}/") for part in parts)]
    return f"{missing[0]} has no part" if missing else None


def _is_count(value: Any, least: int, most: int) -> bool:
    return type(value) is int and least <= value <= most


def _is_split(value: Any, buckets: int) -> bool:
    if not isinstance(value, dict):
        return False
    lists = (value.get("bucket_rows"), buckets), (value.get("stars"), 5)
    return _is_count(value.get("rows"), 0, 1 << 62) and all(
        isinstance(found, list) and len(found) == size and all(_is_count(item, 0, 1 << 62) for item in found)
        for found, size in lists
    )


def read_vocabulary(folder: Path, manifest: Mapping[str, Any]) -> list[str]:
    """Read vocabulary.txt and check it against the manifest; entry i is the word of id i + 2.

    Raises:
        DatasetError: missing, or its digest is another one.
    """
    path = Path(folder) / VOCABULARY
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DatasetError(f"{path}: {error.strerror}; the dataset must be made or copied again") from None
    if hashlib.sha256(data).hexdigest() != manifest["vocabulary"]["digest"]:
        raise DatasetError(f"{path}: does not fit the digest in {MANIFEST}: the file was changed or damaged")
    return data.decode("utf-8").split("\n")[:-1]
