"""Bucket bounds against trying them all."""

from itertools import combinations

from hypothesis import given, settings
from hypothesis import strategies as st

from mr.buckets import MAX_BUCKETS, MAX_WASTE, choose_bounds, padding_waste

LENGTHS = st.dictionaries(st.integers(1, 72), st.integers(1, 1000), min_size=1, max_size=20)


def padded(lengths, bounds):
    return sum(count * min(bound for bound in bounds if bound >= length) for length, count in lengths.items())


@given(LENGTHS, st.integers(0, 30), st.integers(72, 80))
@settings(max_examples=150, deadline=None)
def test_as_good_as_the_best_of_all(lengths, longer, max_length):
    longest = min(max(lengths) + longer, max_length)
    last = min(-(-longest // 8) * 8, max_length)
    bounds = choose_bounds(lengths, longest, max_length)
    assert bounds[-1] == last
    assert all(bound % 8 == 0 for bound in bounds[:-1])
    best = {
        count: min(padded(lengths, (*some, last)) for some in combinations(range(8, last, 8), count - 1))
        for count in range(1, min(MAX_BUCKETS, -(-last // 8)) + 1)
    }
    tokens = sum(length * count for length, count in lengths.items())
    enough = [count for count in best if best[count] - tokens < MAX_WASTE * best[count]]
    assert len(bounds) == (enough[0] if enough else max(best))
    assert padded(lengths, bounds) == best[len(bounds)]


@given(LENGTHS)
def test_waste_is_the_share_of_padding(lengths):
    tokens = sum(length * count for length, count in lengths.items())
    assert padding_waste(lengths, (16, 40, 72)) == 1 - tokens / padded(lengths, (16, 40, 72))


def test_edges():
    assert choose_bounds({3: 5}, 3, 256) == (8,)
    assert choose_bounds({3: 5}, 3, 5) == (5,)
    assert choose_bounds({250: 5}, 250, 250) == (250,)
    assert padding_waste({}, (8,)) == 0.0
    wide = dict.fromkeys(range(1, 9999), 1)
    assert choose_bounds(wide, 9998, 9999)[-1] == 9999
