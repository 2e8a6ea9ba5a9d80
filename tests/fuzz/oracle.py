"""The slow twin of the reader: a split's rows in plain Python from the files' bytes, without any of the reader's code.

It holds to docs/format.md to the letter and raises ValueError for whatever does not, and so decides what is right.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping

import xxhash

Rows = list[tuple[list[int], int, int]]
"""tokens, length, stars"""


def slow_read(files: Mapping[str, bytes], split: str) -> list[Rows]:
    """The rows of each bucket of a split.

    Args:
        files: the dataset's files by their paths within it, index files among them.
        split: which one.

    Raises:
        ValueError: something is not as the format says.
    """
    manifest = json.loads(files["dataset.json"])
    bounds, chunk_rows = manifest["bucket_bounds"], manifest["chunk_rows"]
    item = {"uint16": "H", "uint32": "I"}[manifest["token_type"]]
    ids = manifest["vocabulary"]["words"] + 2
    buckets: list[Rows] = [[] for _ in bounds]
    for part in manifest["parts"]:
        if part["path"].split("/")[0] != split:
            continue
        data = files[part["path"]]
        index = files[part["path"].removesuffix(".h5") + ".index"]
        at = 8 + 8 * len(bounds)
        _require(len(index) >= at, "index too short")
        size, *counts = struct.unpack_from(f"<{1 + len(bounds)}q", index)
        _require(size == len(data), "size of the part")
        for bucket, (bound, count) in enumerate(zip(bounds, counts, strict=True)):
            chunks = -(-count // chunk_rows)
            columns = []
            for kind, size in (("q", 8), ("q", 8), ("B", 1), ("Q", 8), ("Q", 8)):
                _require(at + chunks * size <= len(index), "index too short")
                columns.append(struct.unpack_from(f"<{chunks}{kind}", index, at))
                at += chunks * size
            lengths_at, stars_at, rows = struct.unpack_from("<3q", index, at)
            at += 24
            _require(rows == count, "rows of the bucket")
            for chunk in range(chunks):
                first = chunk * chunk_rows
                own = min(chunk_rows, count - first)
                place = [column[chunk] for column in columns]
                tokens = _tokens(data, place, chunk_rows, own, bound, item)
                sides = data[lengths_at + 2 * first :][: 2 * own] + data[stars_at + first :][:own]
                _require(len(sides) == 3 * own and min(lengths_at, stars_at) >= 0, "place of lengths and stars")
                _require(xxhash.xxh3_64_intdigest(sides) == place[4], "checksum of lengths and stars")
                lengths, stars = struct.unpack(f"<{own}H", sides[: 2 * own]), sides[2 * own :]
                _require(max(tokens) < ids, "ids")
                _require(all(1 <= length <= bound for length in lengths), "lengths")
                _require(all(1 <= star <= 5 for star in stars), "stars")
                buckets[bucket] += [
                    (list(tokens[row * bound : (row + 1) * bound]), lengths[row], stars[row]) for row in range(own)
                ]
        _require(at == len(index), "something behind the index")
    _require([len(rows) for rows in buckets] == manifest["splits"][split]["bucket_rows"], "rows of the split")
    return buckets


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise ValueError(what)


def _tokens(data: bytes, place: list[int], chunk_rows: int, rows: int, bound: int, item: str) -> tuple[int, ...]:
    """The tokens of a chunk's rows, one after the other."""
    offset, size, filters, checksum, _ = place
    _require(0 <= offset <= offset + size <= len(data) and size > 0 and filters <= 3, "place of the chunk")
    stored, width = data[offset : offset + size], struct.calcsize(item)
    _require(xxhash.xxh3_64_intdigest(stored) == checksum, "checksum of the chunk")
    whole, wanted = chunk_rows * bound * width, rows * bound * width
    if filters & 1:
        stored = lz4_container(stored)
    _require(len(stored) == whole or (len(stored) == wanted and not filters), "size of the chunk")
    if filters & 2:
        plane = whole // width
        stored = bytes(stored[byte * plane + number] for number in range(plane) for byte in range(width))
    return struct.unpack(f"<{rows * bound}{item}", stored[:wanted])


def lz4_container(stored: bytes) -> bytes:
    """What HDF5's LZ4 filter stored: sizes, then blocks."""
    _require(len(stored) >= 12, "LZ4 header")
    whole, block = struct.unpack(">QI", stored[:12])
    _require(block > 0 and whole < 1 << 32, "LZ4 sizes")
    decoded, at = b"", 12
    while len(decoded) < whole:
        _require(at + 4 <= len(stored), "LZ4 block")
        (size,) = struct.unpack_from(">I", stored, at)
        plain = min(block, whole - len(decoded))
        piece = stored[at + 4 : at + 4 + size]
        _require(len(piece) == size > 0, "LZ4 block")
        decoded += piece if size == plain else lz4_block(piece, plain)
        at += 4 + size
    return decoded


def lz4_block(source: bytes, size: int) -> bytes:
    """One block of the LZ4 format that decodes to `size` bytes."""
    decoded, at = bytearray(), 0

    def long(value: int) -> int:
        nonlocal at
        more = 255 if value == 15 else 0
        while more == 255:
            _require(at < len(source), "LZ4 length")
            more = source[at]
            at += 1
            value += more
        return value

    while True:
        _require(at < len(source), "LZ4 token")
        token = source[at]
        at += 1
        literals = long(token >> 4)
        _require(at + literals <= len(source) and len(decoded) + literals <= size, "LZ4 literals")
        decoded += source[at : at + literals]
        at += literals
        if at == len(source):
            break
        _require(at + 2 <= len(source), "LZ4 offset")
        offset = source[at] | source[at + 1] << 8
        at += 2
        length = long(token & 15) + 4
        _require(offset <= len(decoded) and len(decoded) + length <= size, "LZ4 match")
        for _ in range(length):
            # The format has no offset 0; liblz4, and so libhdf5, reads zeros.
            decoded.append(decoded[-offset] if offset else 0)
    _require(len(decoded) == size, "LZ4 size")
    return bytes(decoded)
