"""Slow twins in plain Python: what the native modules compute, by building it whole."""

from __future__ import annotations

MASK = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15
STRATA = 32
ROWS_KEY, BATCHES_KEY = 1, 2


def mix(x: int) -> int:
    """The finaliser of SplitMix64."""
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & MASK
    return x ^ (x >> 31)


def fold(*values: int) -> int:
    """The key of these values."""
    key = 0
    for value in values:
        key = mix((key + GOLDEN + value) & MASK)
    return key


def also(key: int, value: int) -> int:
    """One more value in a key."""
    return mix((key + GOLDEN + value) & MASK)


def twin_permute(x: int, size: int, key: int) -> int:
    """One position through the Feistel network."""
    bits = max(10, (size - 1).bit_length())
    left_bits, right_bits = bits // 2, bits - bits // 2
    keys = [mix((key + GOLDEN * (i + 1)) & MASK) for i in range(8)]

    def f(half: int, k: int) -> int:
        return ((half ^ k) * 0xD6E8FEB86659FD93 & MASK) >> 32

    while True:
        left, right = x >> right_bits, x & ((1 << right_bits) - 1)
        for i in range(0, 8, 2):
            left ^= f(right, keys[i]) & ((1 << left_bits) - 1)
            right ^= f(left, keys[i + 1]) & ((1 << right_bits) - 1)
        x = left << right_bits | right
        if x < size:
            return x


def twin_window(pool: list[int], chunks: int, key: int) -> list[int]:
    """The rows of a window (in chunk order) in their shuffled order."""
    size, stratum = len(pool), len(pool) // STRATA
    if size < 1024 or chunks < 4:
        return [pool[twin_permute(i, size, key)] for i in range(size)]
    rotation = also(key, STRATA + 1) % size
    order = []
    for position in range(size):
        block, rest = position // STRATA, position - STRATA * stratum
        if rest >= 0:
            row = STRATA * stratum + twin_permute(rest, size - STRATA * stratum, also(key, STRATA + 2))
        else:
            mixed = mix((also(key, STRATA) + block) & MASK)
            number = (position * (mixed | 1) + (mixed >> 32)) % STRATA
            row = number * stratum + twin_permute(block, stratum, also(key, number))
        order.append(pool[(row + rotation) % size])
    return order


def twin_positions(rows: int, chunk_rows: int, window: int, key: int) -> tuple[list[int], list[tuple[float, int]]]:
    """A bucket's order, position by position, and of each position (place in its window by chunk, window)."""
    chunks = -(-rows // chunk_rows)
    order = [twin_permute(slot, chunks, key) for slot in range(chunks)]
    width = -(-chunks // -(-chunks // min(window, chunks)))
    result: list[int] = []
    places: list[tuple[float, int]] = []
    for number, start in enumerate(range(0, chunks, width)):
        inside = sorted(order[start : start + width])
        pool = [row for chunk in inside for row in range(chunk * chunk_rows, min(rows, (chunk + 1) * chunk_rows))]
        shuffled = twin_window(pool, len(inside), mix(key ^ mix(number + 1)))
        result += shuffled
        places += [(inside.index(row // chunk_rows) * width // len(inside), number) for row in shuffled]
    return result, places


def twin_batches(
    rows: list[int], chunk_rows: list[int], windows: list[int], batch_size: int, seed: int, epoch: int
) -> list[tuple[int, int, list[int]]]:
    """A whole epoch: per step the bucket, the batch's number, and its rows in chunk order."""
    counts = [-(-count // batch_size) for count in rows]
    steps = sum(counts)
    rounds = min(-(-steps // 64), 1 << 20)
    key = fold(seed, BATCHES_KEY, epoch)
    phases = [also(key, b) % rounds for b in range(len(rows))]
    positions = [
        twin_positions(*shape, fold(seed, ROWS_KEY, epoch, b)) if shape[0] else ([], [])
        for b, shape in enumerate(zip(rows, chunk_rows, windows, strict=True))
    ]
    taken = [0] * len(rows)
    result = []
    for number in range(rounds):
        before = [(count * number + phase) // rounds for count, phase in zip(counts, phases, strict=True)]
        after = [(count * (number + 1) + phase) // rounds for count, phase in zip(counts, phases, strict=True)]
        order = [b for b in range(len(rows)) for _ in range(after[b] - before[b])]
        round_key = also(key, len(rows) + number)
        for i in range(len(order) - 1, 0, -1):
            j = mix((round_key + i) & MASK) % (i + 1)
            order[i], order[j] = order[j], order[i]
        for b in order:
            part = slice(taken[b] * batch_size, (taken[b] + 1) * batch_size)
            found = sorted(zip(positions[b][1][part], positions[b][0][part], strict=True))
            result.append((b, taken[b], [row for _, row in found]))
            taken[b] += 1
    return result
