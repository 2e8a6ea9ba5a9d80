"""The computed shuffle against its slow twin, and as a permutation."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from native.shuffle import derive_key, permute, rows_at

MASK = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15


def mix(x: int) -> int:
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & MASK
    return x ^ (x >> 31)


def twin_permute(x: int, size: int, key: int) -> int:
    """One position through the Feistel network, in plain Python."""
    bits = max(10, (size - 1).bit_length())
    left_bits, right_bits = bits // 2, bits - bits // 2
    keys = [mix((key + GOLDEN * (i + 1)) & MASK) for i in range(8)]

    def f(half: int, k: int) -> int:
        x = (half ^ k) * 0xD6E8FEB86659FD93 & MASK
        x ^= x >> 32
        return (x * 0xD6E8FEB86659FD93 & MASK) >> 32

    while True:
        left, right = x >> right_bits, x & ((1 << right_bits) - 1)
        for i in range(0, 8, 2):
            left ^= f(right, keys[i]) & ((1 << left_bits) - 1)
            right ^= f(left, keys[i + 1]) & ((1 << right_bits) - 1)
        x = left << right_bits | right
        if x < size:
            return x


def twin_order(rows: int, chunk_rows: int, window: int, key: int) -> list[int]:
    """The whole shuffled order, by building it: chunks permuted, then rows within windows of chunks."""
    chunks = -(-rows // chunk_rows)
    order = [twin_permute(slot, chunks, key) for slot in range(chunks)]
    width = min(window, chunks)
    result: list[int] = []
    for number, start in enumerate(range(0, chunks, width)):
        pool = [
            row
            for chunk in order[start : start + width]
            for row in range(chunk * chunk_rows, min(rows, (chunk + 1) * chunk_rows))
        ]
        inside = mix(key ^ mix(number + 1))
        result += [pool[twin_permute(i, len(pool), inside)] for i in range(len(pool))]
    return result


@settings(max_examples=100, deadline=None)
@given(
    rows=st.integers(1, 200),
    chunk_rows=st.integers(1, 50),
    window=st.integers(1, 12),
    key=st.integers(0, MASK),
    data=st.data(),
)
def test_any_range_of_positions_equals_the_order_built_whole(rows, chunk_rows, window, key, data):
    whole = twin_order(rows, chunk_rows, window, key)
    assert sorted(whole) == list(range(rows))
    first = data.draw(st.integers(0, rows))
    count = data.draw(st.integers(0, rows - first))
    assert rows_at(first, count, rows, chunk_rows, window, key).tolist() == whole[first : first + count]


@settings(max_examples=50, deadline=None)
@given(size=st.integers(1, 3000), key=st.integers(0, MASK))
def test_permute_is_a_permutation_and_equals_its_twin(size, key):
    mapped = permute(np.arange(size), size, key)
    assert sorted(mapped) == list(range(size))
    assert mapped[:50].tolist() == [twin_permute(x, size, key) for x in range(min(size, 50))]


def test_a_position_of_a_trillion_rows_is_computed_at_once():
    rows = 10**12 + 7
    found = rows_at(rows - 3, 3, rows, 2048, 64, derive_key(7, 1))
    assert len(set(found.tolist())) == 3
    assert found.min() >= 0
    assert found.max() < rows


@pytest.mark.parametrize("size", [2, 3, 5, 8])
def test_every_element_is_equally_likely_at_every_position(size):
    keys = 4000
    counts = np.zeros((size, size))
    for number in range(keys):
        counts[np.arange(size), permute(np.arange(size), size, derive_key(number, 3))] += 1
    expected = keys / size
    chi_squared = ((counts - expected) ** 2 / expected).sum()
    freedom = (size - 1) ** 2
    # 6 standard deviations of a chi-squared distribution: the keys are fixed, so this never fails at random
    assert chi_squared < freedom + 6 * (2 * freedom) ** 0.5


def test_small_permutations_all_occur_about_equally_often():
    keys = 12_000
    seen = Counter(tuple(permute(np.arange(4), 4, derive_key(number, 9)).tolist()) for number in range(keys))
    assert len(seen) == 24
    assert max(seen.values()) < 1.25 * keys / 24
    assert min(seen.values()) > 0.75 * keys / 24


def test_epochs_are_independent():
    n = 5000
    first, second = (rows_at(0, n, n, 100, 20, derive_key(7, 1, epoch)) for epoch in (0, 1))
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.05
    assert (first == second).mean() < 0.005


def test_keys_depend_on_every_value_and_their_order():
    keys = {derive_key(*values) for values in [(), (0,), (0, 0), (1, 0), (0, 1), (-1,), (2**64,)]}
    assert len(keys) == 6  # 2^64 is 0 modulo 2^64
    assert derive_key(2**64) == derive_key(0)


@pytest.mark.parametrize("arguments", [(0, 11, 10, 4, 2), (-1, 2, 10, 4, 2), (0, 1, 0, 4, 2), (0, 1, 10, 0, 2)])
def test_impossible_ranges_are_refused(arguments):
    with pytest.raises(ValueError, match=r"must all be at least 1|lie outside"):
        rows_at(*arguments, 1)
