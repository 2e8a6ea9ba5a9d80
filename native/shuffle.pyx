# cython: language_level=3
"""Keyed permutations that are computed, not stored: any position in O(1) time and memory.

A permutation is a Feistel network with cycle walking (Black and Rogaway, "Ciphers with arbitrary finite
domains", CT-RSA 2002), keyed by (seed, epoch, ...). It is a statistical shuffle, not a cipher. The network itself
stands in shuffle.pxd; native/order.pyx makes the order of rows from it.
"""
from libc.stdint cimport int64_t, uint64_t

import numpy as np


def derive_key(*values) -> int:
    """Fold integers into one 64-bit key; the order of the values matters.

    Args:
        values: any integers (taken modulo 2^64): seed, epoch, purpose, ...

    Returns:
        The key, 0 <= key < 2^64.
    """
    cdef uint64_t key = 0
    for value in values:
        key = fold(key, <uint64_t>(value & 0xFFFFFFFFFFFFFFFF))
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
