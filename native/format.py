"""The dataset format (docs/format.md): what is in the folder, and how its manifest and vocabulary are checked.

    dataset.json      manifest, written last: a folder without it is not a dataset
    vocabulary.txt    one word a line; line i is the word of id i + 2 (0 pads, 1 is an unknown word)
    train/ validation/ test/   part-NNNNN.h5, each with one group per length bucket ("0032"):
        tokens    uint16|uint32 [rows, L]  chunks (R, L), byte shuffle and LZ4; padded on the right with 0
        lengths   uint16 [rows]            1..L
        stars     uint8  [rows]            1..5
        checksums uint64 [chunks]          XXH3 of each token chunk's stored bytes
        row_checksums uint64 [chunks]      XXH3 of the chunk's lengths bytes followed by its stars bytes
    and beside each part-NNNNN.index, from which it is read (native/index.py)

The digests form a tree: the manifest's digest covers each part's digest and index digest, the index digest covers
the place and the checksums of every chunk, and the checksums cover every byte that training reads.
"""

from __future__ import annotations

import hashlib
import json
import re
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

from native.files import read_file
from native.text import SPLITS

FORMAT_NAME = "reviews-hdf5"
FORMAT_VERSION = 1
MANIFEST = "dataset.json"
VOCABULARY = "vocabulary.txt"
UNFINISHED = "unfinished.json"
QUARANTINE_FILE = "quarantine.jsonl"
MAX_BOUND = 9_999
MAX_CHUNK_ROWS = 1 << 20
MAX_CHUNK_BYTES = 1 << 30
"""decoded tokens of a chunk: what a file makes a reader allocate"""
MAX_ROWS = 1 << 48
MAX_MANIFEST_BYTES = 64 << 20
MAX_VOCABULARY_BYTES = 1 << 30
COUNT_FIELDS = ("lines", "kept", "duplicates", "empty", "malformed", "without_rating")
TOKEN_BYTES = {"uint16": 2, "uint32": 4}
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
_PART_PATH = re.compile(rf"(?:{'|'.join(SPLITS)})/[A-Za-z0-9][A-Za-z0-9._-]{{0,199}}\.h5", re.ASCII)
_DIGEST = re.compile(r"[0-9a-f]{64}", re.ASCII)


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


def group_name(bound: int) -> str:
    """The HDF5 group of the bucket with this bound."""
    return f"{bound:04d}"


def part_rows(rows: int, chunk_rows: int, parts: int) -> list[int]:
    """Rows of a bucket per part, cut at whole chunks; only the bucket's last chunk may be short."""
    chunks = -(-rows // chunk_rows)
    edges = [min(rows, chunks * part // parts * chunk_rows) for part in range(parts + 1)]
    return [stop - start for start, stop in pairwise(edges)]


def json_digest(value: object) -> str:
    """SHA-256 of a value's canonical JSON, in hexadecimal."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read and check dataset.json.

    Raises:
        DatasetError: no manifest, not JSON, another format or version, fields that are missing or do not add up, or
            a digest that does not fit the fields.
    """
    path = Path(folder) / MANIFEST
    try:
        manifest = _checked(path, _parsed(path))
    except RecursionError:
        raise DatasetError(f"{path}: not readable as JSON (nested too deeply); make the dataset again") from None
    return manifest


def _parsed(path: Path) -> Any:
    try:
        return json.loads(read_file(path, MAX_MANIFEST_BYTES), parse_constant=_refuse)
    except FileNotFoundError:
        if not path.parent.exists():
            raise DatasetError(
                f"{path.parent}: there is no such folder; make a dataset with python -m mr INPUT..."
            ) from None
        raise DatasetError(
            f"{path.parent}: no {MANIFEST}, so this is not a finished dataset; make one with "
            f"python -m mr INPUT... --out {path.parent}"
        ) from None
    except OSError as error:
        raise DatasetError(f"{path}: not readable ({error.strerror}); name a folder made by python -m mr") from None
    except ValueError as error:
        raise DatasetError(f"{path}: not readable as JSON ({error}); the dataset must be made again") from None


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number of JSON's")


def _checked(path: Path, manifest: Any) -> dict[str, Any]:
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT_NAME:
        raise DatasetError(f"{path}: not a {FORMAT_NAME} manifest; name a folder made by python -m mr")
    version = manifest.get("version")
    if type(version) is not int or version != FORMAT_VERSION:
        raise DatasetError(f"{path}: format version {reprlib.repr(version)}, this program reads {FORMAT_VERSION}")
    missing = [field for field in (*DIGEST_FIELDS, "digest", "counts") if field not in manifest]
    if missing:
        raise DatasetError(f"{path}: the fields {', '.join(missing)} are missing; the dataset must be made again")
    problem = _sizes_problem(manifest) or _parts_problem(manifest["parts"], manifest["bucket_bounds"])
    problem = problem or _sums_problem(manifest) or _counts_problem(manifest["counts"])
    if problem:
        raise DatasetError(f"{path}: {problem}; the dataset must be made again")
    if json_digest({field: manifest[field] for field in DIGEST_FIELDS}) != manifest["digest"]:
        raise DatasetError(f"{path}: its digest does not fit its content: the file was changed or damaged")
    return manifest


def _sizes_problem(manifest: Mapping[str, Any]) -> str | None:
    """What is wrong with the values that sizes are computed from; None when nothing is."""
    bounds, chunk_rows, token_type = (manifest[name] for name in ("bucket_bounds", "chunk_rows", "token_type"))
    if not _is_count(chunk_rows, 1, MAX_CHUNK_ROWS):
        return f"chunk_rows {reprlib.repr(chunk_rows)} is not a number from 1 to {MAX_CHUNK_ROWS}"
    if not isinstance(bounds, list) or not bounds or not all(_is_count(bound, 1, MAX_BOUND) for bound in bounds):
        return f"bucket_bounds must be numbers from 1 to {MAX_BOUND}"
    if any(bound >= following for bound, following in pairwise(bounds)):
        return "bucket_bounds do not ascend"
    if not isinstance(token_type, str) or token_type not in TOKEN_BYTES:
        return f"token_type {reprlib.repr(token_type)} is neither uint16 nor uint32"
    if chunk_rows * bounds[-1] * TOKEN_BYTES[token_type] > MAX_CHUNK_BYTES:
        return f"chunks of {chunk_rows} rows of {bounds[-1]} tokens have more than {MAX_CHUNK_BYTES:,} bytes"
    vocabulary = manifest["vocabulary"]
    if not isinstance(vocabulary, dict) or not _is_count(vocabulary.get("words"), 0, (1 << 31) - 3):
        return "vocabulary has no usable number of words"
    if not _is_digest(vocabulary.get("digest")):
        return "vocabulary has no digest"
    if not isinstance(manifest["text"], dict):
        return "text holds no settings"
    splits = manifest["splits"]
    if not isinstance(splits, dict) or any(not _is_split(splits.get(split), len(bounds)) for split in SPLITS):
        return "splits must give rows, bucket_rows and stars of train, validation and test"
    return None


def _parts_problem(parts: Any, bounds: list[int]) -> str | None:
    """What is wrong with the list of parts; None when nothing is."""
    fields = "parts must each have path, rows, tokens, digest and index_digest"
    if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
        return fields
    for part in parts:
        path, rows = part.get("path"), part.get("rows")
        if not isinstance(path, str) or not _PART_PATH.fullmatch(path):
            return f"the part {reprlib.repr(path)} does not lie in a split's folder under a name that ends in .h5"
        if not _is_digest(part.get("digest")) or not _is_digest(part.get("index_digest")):
            return f"{fields}; {path} has no digests"
        if not _is_count(rows, 0, MAX_ROWS) or not _is_count(part.get("tokens"), rows, rows * bounds[-1]):
            return f"{fields}; those of {path} are not numbers that can be"
    if len({part["path"] for part in parts}) != len(parts):
        return "parts must have each path once"
    missing = [split for split in SPLITS if not entries_of(parts, split)]
    return f"{missing[0]} has no part" if missing else None


def _sums_problem(manifest: Mapping[str, Any]) -> str | None:
    """Which numbers of rows do not add up; None when all do."""
    for split in SPLITS:
        found = manifest["splits"][split]
        sums = {
            "rows": found["rows"],
            "bucket_rows": sum(found["bucket_rows"]),
            "stars": sum(found["stars"]),
            "rows of its parts": sum(part["rows"] for part in entries_of(manifest["parts"], split)),
        }
        if len(set(sums.values())) != 1:
            return f"{split}: {', '.join(f'{name} {count}' for name, count in sums.items())} do not agree"
    return None


def _counts_problem(counts: Any) -> str | None:
    if not isinstance(counts, dict) or not all(_is_count(counts.get(name), 0, MAX_ROWS) for name in COUNT_FIELDS):
        return f"counts must give {', '.join(COUNT_FIELDS)}"
    if counts["lines"] != sum(counts[name] for name in COUNT_FIELDS[1:]):
        return "the lines of counts are not the sum of the others"
    return None


def entries_of(parts: list[dict[str, Any]], split: str) -> list[dict[str, Any]]:
    """The manifest's entries of a split's parts, in their order."""
    return [part for part in parts if part["path"].startswith(f"{split}/")]


def _is_count(value: Any, least: int, most: int) -> bool:
    return type(value) is int and least <= value <= most


def _is_digest(value: Any) -> bool:
    return isinstance(value, str) and _DIGEST.fullmatch(value) is not None


def _is_split(value: Any, buckets: int) -> bool:
    if not isinstance(value, dict):
        return False
    lists = (value.get("bucket_rows"), buckets), (value.get("stars"), 5)
    return _is_count(value.get("rows"), 0, MAX_ROWS) and all(
        isinstance(found, list) and len(found) == size and all(_is_count(item, 0, MAX_ROWS) for item in found)
        for found, size in lists
    )


def read_vocabulary(folder: Path, manifest: Mapping[str, Any]) -> list[str]:
    """Read vocabulary.txt and check it against the manifest; entry i is the word of id i + 2.

    Raises:
        DatasetError: missing, its digest is another one, or it does not hold the words that the manifest says.
    """
    path = Path(folder) / VOCABULARY
    try:
        data = read_file(path, MAX_VOCABULARY_BYTES)
    except OSError as error:
        raise DatasetError(f"{path}: {error.strerror}; the dataset must be made or copied again") from None
    if hashlib.sha256(data).hexdigest() != manifest["vocabulary"]["digest"]:
        raise DatasetError(f"{path}: does not fit the digest in {MANIFEST}: the file was changed or damaged")
    try:
        words = data.decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path}: not UTF-8 at byte {error.start}; the dataset must be made again") from None
    if words.pop() or len(words) != manifest["vocabulary"]["words"]:
        raise DatasetError(
            f"{path}: {len(words)} words, a line each, where {MANIFEST} says {manifest['vocabulary']['words']}; "
            "the dataset must be made again"
        )
    return words
