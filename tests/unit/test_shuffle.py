"""Keyed permutations against their slow twin, and as permutations."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from native.shuffle import derive_key, permute
from tests.twins import MASK, twin_permute


@settings(max_examples=50, deadline=None)
@given(size=st.integers(1, 3000), key=st.integers(0, MASK))
def test_permute_is_a_permutation_and_equals_its_twin(size, key):
    mapped = permute(np.arange(size), size, key)
    assert sorted(mapped) == list(range(size))
    assert mapped[:50].tolist() == [twin_permute(x, size, key) for x in range(min(size, 50))]


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


@pytest.mark.parametrize("size", [1000, 5000, 70_000])
@pytest.mark.parametrize("apart", [1, 64])
def test_positions_near_each_other_hold_unrelated_elements(size, apart):
    mapped = permute(np.arange(size), size, derive_key(size)) * 16 // size
    pairs = np.zeros((16, 16))
    np.add.at(pairs, (mapped[:-apart], mapped[apart:]), 1)
    expected = (size - apart) / 256
    assert ((pairs - expected) ** 2 / expected).sum() < 225 + 6 * 450**0.5


def test_keys_depend_on_every_value_and_their_order():
    keys = {derive_key(*values) for values in [(), (0,), (0, 0), (1, 0), (0, 1), (-1,), (2**64,)]}
    assert len(keys) == 6  # 2^64 is 0 modulo 2^64
    assert derive_key(2**64) == derive_key(0)


def test_positions_outside_are_refused():
    with pytest.raises(ValueError, match=r"\[0, 5\)"):
        permute(np.array([5]), 5, 1)
