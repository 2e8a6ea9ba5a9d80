"""Changes to bytes and to JSON values, each a function of a random number generator alone."""

from __future__ import annotations

import copy
import json
import random
import struct
from collections.abc import Callable
from typing import Any

EXTREMES = (0, 1, 2, 3, 5, 127, 128, 255, 256, 2047, 2048, 32_767, 32_768, 65_535, 65_536, 65_537, 2**31 - 1, 2**31,
            2**32 - 1, 2**32, 2**48, 2**48 + 1, 2**53, 2**62, 2**63 - 1, 2**63, 2**64 - 1, 2**64, 10**30)  # fmt: skip
STRANGE = (None, True, False, "", "64", "\x00", "\ud800", "../../etc/passwd", "x" * 5000, 0.5, 1e308, [], {}, [[]],
           {"": 0}, float("nan"), float("inf"))  # fmt: skip

Change = Callable[[random.Random, bytes, bytes], bytes]


def _place(rng: random.Random, data: bytes, size: int = 1) -> int:
    return rng.randrange(max(1, len(data) - size + 1))


def flip(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """One bit, or a few."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 8))):
        changed[_place(rng, data)] ^= 1 << rng.randrange(8)
    return bytes(changed)


def overwrite(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """A run of bytes: random ones, or one over and over."""
    size = min(len(data), rng.choice((1, 1, 2, 4, 8, 16, 64)))
    at = _place(rng, data, size)
    filling = rng.randbytes(size) if rng.random() < 0.5 else bytes([rng.choice((0, 1, 0x7F, 0x80, 0xFE, 0xFF))]) * size
    return data[:at] + filling + data[at + size :]


def extreme(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """A number of 2, 4 or 8 bytes, replaced by an extreme one or by one a little larger or smaller."""
    kind = rng.choice("HIQ")
    size = struct.calcsize(kind)
    order = rng.choice("<<>")
    if len(data) < size:
        return data
    at = _place(rng, data, size)
    if rng.random() < 0.5:
        at -= at % size
    value = rng.choice(EXTREMES)
    if rng.random() < 0.3:
        value = struct.unpack_from(order + kind, data, at)[0] + rng.choice((-16, -2, -1, 1, 2, 16))
    return data[:at] + struct.pack(order + kind, value % (1 << 8 * size)) + data[at + size :]


def truncate(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """The beginning alone."""
    return data[: rng.randrange(len(data))]


def extend(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """Something behind the end."""
    size = rng.choice((1, 8, 33, 100, 4096))
    return data + rng.choice((bytes(size), rng.randbytes(size), data[-size:], other[:size]))


def swap(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """Two blocks in each other's place."""
    size = min(len(data) // 2, rng.choice((1, 4, 8, 32, 128, 512)))
    first = rng.randrange(len(data) - 2 * size + 1)
    second = rng.randrange(first + size, len(data) - size + 1)
    return (
        data[:first]
        + data[second : second + size]
        + data[first + size : second]
        + data[first : first + size]
        + data[second + size :]
    )


def splice(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """The beginning of one valid file and the end of another, or a block of the other in between."""
    at = _place(rng, data)
    if rng.random() < 0.5:
        return data[:at] + other[at:]
    end = rng.randrange(at, len(data) + 1)
    return data[:at] + other[at:end] + data[end:]


def insert(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """A block twice, or one left out."""
    size = min(len(data), rng.choice((1, 2, 8, 33, 256)))
    at = _place(rng, data, size)
    times = rng.choice((0, 2))
    return data[:at] + data[at : at + size] * times + data[at + size :]


CHANGES: dict[str, Change] = {
    function.__name__: function for function in (flip, overwrite, extreme, truncate, extend, swap, splice, insert)
}


def change_json(rng: random.Random, value: Any) -> Any:
    """A copy of a JSON value with one or two of its values changed, removed or added."""
    changed = copy.deepcopy(value)
    for _ in range(rng.choice((1, 1, 1, 2))):
        places = list(_places(changed))
        if places:
            _change_place(rng, *rng.choice(places))
    return changed


def _places(value: Any) -> Any:
    """(container, key) of every value inside."""
    items = list(value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ())
    for key, inner in items:
        yield value, key
        yield from _places(inner)


def _change_place(rng: random.Random, container: Any, key: Any) -> None:
    old, kind = container[key], rng.randrange(8)
    if kind == 0:
        del container[key]
    elif kind == 1:
        container[key] = rng.choice(STRANGE)
    elif kind == 2 and isinstance(container, list):
        container.insert(key, old)
    elif kind == 3 and isinstance(old, int):
        container[key] = old + rng.choice((-64, -1, 1, 64))
    elif kind == 4 and isinstance(old, str) and old:
        container[key] = flip(rng, old.encode("utf-8", "surrogatepass"), b"").decode("latin-1")
    elif kind == 5 and isinstance(container, list) and len(container) > 1:
        other = rng.randrange(len(container))
        container[key], container[other] = container[other], old
    else:
        container[key] = rng.choice(EXTREMES) * rng.choice((1, 1, -1))


def dump_json(rng: random.Random, value: Any) -> bytes:
    """The value as JSON, once in a while in a way that only few programs write."""
    text = json.dumps(value, indent=rng.choice((None, None, 1)))
    if rng.random() < 0.02:
        depth = rng.choice((50, 5000, 200_000))
        text = text[:-1] + ', "deep": ' + "[" * depth + "]" * depth + "}"
    return text.encode(rng.choice(("utf-8",) * 20 + ("utf-16", "utf-32", "utf-8-sig")), "surrogatepass")
