"""Shares become whole numbers that sum to the total."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from openwork.allocation import allocation, exact_counts
from tests.allocation.networks import NAMES


@settings(max_examples=60)
@given(st.lists(st.tuples(st.floats(0, 20), st.integers(0, 20)), min_size=1, max_size=6), st.data())
def test_exact_counts(layers, data):
    caps = [cap for _, cap in layers]
    total = data.draw(st.integers(0, sum(caps)))
    counts = exact_counts([w for w, _ in layers], caps, total)
    assert sum(counts) == total
    assert all(0 <= c <= cap for c, cap in zip(counts, caps, strict=True))


def test_exact_counts_gives_to_the_largest_remainder_and_the_first():
    assert exact_counts([1.2, 2.7, 3.1], [9, 9, 9], 7) == [1, 3, 3]
    assert exact_counts([1.5, 1.5, 1.5], [9, 9, 9], 5) == [2, 2, 1]
    assert exact_counts([3.0, 3.0], [1, 9], 6) == [1, 5]


@pytest.mark.parametrize("total", [-1, 7])
def test_impossible_totals_are_refused(total):
    with pytest.raises(ValueError, match="cannot keep"):
        exact_counts([1.0, 2.0], [2, 4], total)
    for name in NAMES:
        with pytest.raises(ValueError, match="cannot keep"):
            allocation(name).counts([(1, 2), (2, 2)], total, [torch.rand(2), torch.rand(4)])
