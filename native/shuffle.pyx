# cython: language_level=3
"""A shuffle that is computed, not stored: any position's row in O(1) time and memory.

The permutation is a Feistel network with cycle walking (Black and Rogaway, "Ciphers with arbitrary finite
domains", CT-RSA 2002). It is keyed by (seed, epoch, ...), so a position can be asked for directly: resuming
is arithmetic, whatever the size of the data. It is a statistical shuffle, not a cipher.

Within a bucket, chunks are permuted first; then rows are permuted within windows of `window` consecutive
chunks of that order. So each chunk is decoded once an epoch while memory stays bounded by the window.
"""
from libc.stdint cimport int64_t, uint64_t
from libc.stdlib cimport free, malloc

import numpy as np

ctypedef struct Feistel:
    # A keyed permutation of [0, size): an alternating Feistel network on `left + right` bits with cycle walking.
    uint64_t size
    int left_bits
    int right_bits
    uint64_t[8] keys


cdef enum:
    ROUNDS = 8
    # Small domains walk inside a domain of at least 2^10: a Feistel network on very few bits is not uniform.
    MIN_BITS = 10


cdef uint64_t mix64(uint64_t x) noexcept nogil:
    # The finaliser of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014).
    x = (x ^ (x >> 30)) * <uint64_t>0xBF58476D1CE4E5B9ULL
    x = (x ^ (x >> 27)) * <uint64_t>0x94D049BB133111EBULL
    return x ^ (x >> 31)


cdef void feistel_init(Feistel* network, uint64_t size, uint64_t key) noexcept nogil:
    cdef int bits = 0, i
    cdef uint64_t top = size - 1
    while bits < 64 and (top >> bits) != 0:
        bits += 1
    if bits < MIN_BITS:
        bits = MIN_BITS
    network.size = size
    network.left_bits = bits // 2
    network.right_bits = bits - bits // 2
    for i in range(ROUNDS):
        network.keys[i] = mix64(key + <uint64_t>0x9E3779B97F4A7C15ULL * <uint64_t>(i + 1))


cdef inline uint64_t round_function(uint64_t half, uint64_t key) noexcept nogil:
    cdef uint64_t x = (half ^ key) * <uint64_t>0xD6E8FEB86659FD93ULL
    x ^= x >> 32
    return (x * <uint64_t>0xD6E8FEB86659FD93ULL) >> 32


cdef uint64_t feistel_forward(const Feistel* network, uint64_t x) noexcept nogil:
    cdef uint64_t left_mask = (<uint64_t>1 << network.left_bits) - 1
    cdef uint64_t right_mask = (<uint64_t>1 << network.right_bits) - 1
    cdef uint64_t left, right
    cdef int i
    while True:
        left = x >> network.right_bits
        right = x & right_mask
        for i in range(0, ROUNDS, 2):  # ROUNDS is even, so the widths are back in place at the end
            left ^= round_function(right, network.keys[i]) & left_mask
            right ^= round_function(left, network.keys[i + 1]) & right_mask
        x = (left << network.right_bits) | right
        if x < network.size:
            return x


cdef uint64_t feistel_inverse(const Feistel* network, uint64_t x) noexcept nogil:
    cdef uint64_t left_mask = (<uint64_t>1 << network.left_bits) - 1
    cdef uint64_t right_mask = (<uint64_t>1 << network.right_bits) - 1
    cdef uint64_t left, right
    cdef int i
    while True:
        left = x >> network.right_bits
        right = x & right_mask
        for i in range(ROUNDS - 2, -1, -2):
            right ^= round_function(left, network.keys[i + 1]) & right_mask
            left ^= round_function(right, network.keys[i]) & left_mask
        x = (left << network.right_bits) | right
        if x < network.size:
            return x


def derive_key(*values) -> int:
    """Fold integers into one 64-bit key; the order of the values matters.

    Args:
        values: any integers (taken modulo 2^64): seed, epoch, purpose, ...

    Returns:
        The key, 0 <= key < 2^64.
    """
    cdef uint64_t key = 0, item
    for value in values:
        item = <uint64_t>(value & 0xFFFFFFFFFFFFFFFF)
        key = mix64(key + <uint64_t>0x9E3779B97F4A7C15ULL + item)
    return key


def permute(positions, size, key):
    """Map positions through the keyed permutation of [0, size).

    Args:
        positions: int64 array, each in [0, size).
        size: number of elements of the permutation.
        key: 64-bit key, see `derive_key`.

    Returns:
        int64 array of the same length.

    Raises:
        ValueError: a position lies outside [0, size).
    """
    cdef const int64_t[::1] source = np.ascontiguousarray(positions, dtype=np.int64)
    result = np.empty(source.shape[0], dtype=np.int64)
    cdef int64_t[::1] target = result
    cdef Feistel network
    cdef Py_ssize_t i
    cdef int64_t limit = size
    if source.shape[0] == 0:
        return result
    if np.min(positions) < 0 or np.max(positions) >= limit:
        raise ValueError(f"positions must lie in [0, {limit}); take them modulo the size first")
    feistel_init(&network, <uint64_t>limit, <uint64_t>key)
    with nogil:
        for i in range(source.shape[0]):
            target[i] = <int64_t>feistel_forward(&network, <uint64_t>source[i])
    return result


cdef inline int64_t rows_before(int64_t slot, int64_t short_slot, int64_t chunk_rows, int64_t missing) noexcept nogil:
    # Rows in the slots before `slot`, when the chunk at `short_slot` lacks `missing` of its `chunk_rows`.
    return slot * chunk_rows - (missing if slot > short_slot else 0)


def rows_at(first, count, rows, chunk_rows, window, key):
    """The rows that stand at positions first .. first + count of a bucket's shuffled order.

    Args:
        first: first position.
        count: number of positions.
        rows: rows of the bucket; only its last chunk may be short.
        chunk_rows: rows of a full chunk.
        window: chunks of a shuffle window; at least the number of chunks means a full shuffle.
        key: 64-bit key of this bucket in this epoch.

    Returns:
        int64 array [count] of row numbers within the bucket.

    Raises:
        ValueError: the range does not lie inside the bucket, or a size is not positive.
    """
    if rows < 1 or chunk_rows < 1 or window < 1:
        raise ValueError(f"rows {rows}, chunk_rows {chunk_rows} and window {window} must all be at least 1")
    if first < 0 or count < 0 or first + count > rows:
        raise ValueError(f"positions {first}..{first + count} lie outside the bucket's {rows} rows")
    result = np.empty(count, dtype=np.int64)
    cdef int64_t[::1] target = result
    cdef int64_t n = rows, size = chunk_rows, position = first, end = first + count
    cdef int64_t chunks = (n + size - 1) // size
    cdef int64_t width = min(<int64_t>window, chunks)
    cdef int64_t missing = chunks * size - n
    cdef uint64_t base = <uint64_t>key
    cdef int64_t short_slot, window_index, start_slot, end_slot, start, stop, i, slot, short_start, written = 0
    cdef Feistel order, inside
    cdef int64_t* chunk_of = <int64_t*>malloc(width * sizeof(int64_t))
    if chunk_of == NULL:
        raise MemoryError()
    with nogil:
        feistel_init(&order, <uint64_t>chunks, base)
        short_slot = <int64_t>feistel_inverse(&order, <uint64_t>(chunks - 1))
        while position < end:
            window_index = position // (width * size)
            if position >= rows_before(min((window_index + 1) * width, chunks), short_slot, size, missing):
                window_index += 1  # the short chunk came before, so this window starts earlier
            start_slot = window_index * width
            end_slot = min(start_slot + width, chunks)
            start = rows_before(start_slot, short_slot, size, missing)
            stop = rows_before(end_slot, short_slot, size, missing)
            for i in range(end_slot - start_slot):
                chunk_of[i] = <int64_t>feistel_forward(&order, <uint64_t>(start_slot + i))
            feistel_init(&inside, <uint64_t>(stop - start), mix64(base ^ mix64(<uint64_t>window_index + 1)))
            # The row of the window at which rows shift because the short chunk, if it is here, has ended.
            short_start = (short_slot - start_slot) * size + size - missing
            while position < stop and position < end:
                i = <int64_t>feistel_forward(&inside, <uint64_t>(position - start))
                if start_slot <= short_slot < end_slot and i >= short_start:
                    i += missing
                slot = i // size
                target[written] = chunk_of[slot] * size + (i - slot * size)
                written += 1
                position += 1
    free(chunk_of)
    return result
