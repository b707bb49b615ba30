"""Places at random are free, distinct, and as likely as they should be."""

import collections
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from openwork.growth import drawn, free_at_random
from tests.growth.sites import generator, sorted_places


@settings(max_examples=40)
@given(st.data(), st.integers(1, 60), st.integers(0, 2**32))
def test_random_places_are_free_and_distinct(data, n, seed):
    taken = sorted_places(data, n, data.draw(st.integers(0, n)))
    k = data.draw(st.integers(0, n - len(taken)))
    got = free_at_random(taken, n, k, generator(seed)).tolist()
    assert len(got) == k
    assert got == sorted(set(got))
    assert not set(got) & set(taken.tolist())
    assert all(0 <= place < n for place in got)


def test_every_set_is_equally_likely():
    """All 10 pairs of 5 free places, both where k is small and where a permutation is drawn."""
    for taken, places, k in (([1, 4], 7, 2), ([0], 6, 2), ([2, 3], 13, 2)):
        free = [i for i in range(places) if i not in taken]
        pairs = list(itertools.combinations(free, k))
        g = generator(7)
        draws = 300 * len(pairs)
        counts = collections.Counter(
            tuple(free_at_random(torch.tensor(taken), places, k, g).tolist()) for _ in range(draws)
        )
        assert set(counts) == set(pairs)
        chi = sum((counts[p] - 300) ** 2 / 300 for p in pairs)
        assert chi < len(pairs) + 6 * (2 * len(pairs)) ** 0.5


def test_too_many_places_are_refused():
    with pytest.raises(ValueError, match="cannot grow 3 connections where 2 of 4"):
        free_at_random(torch.tensor([0, 1]), 4, 3, generator())


def test_draws_are_proportional_to_the_weights():
    weights = torch.tensor([1.0, 0.0, 2.0, 5.0])
    g = generator(4)
    first = collections.Counter(int(drawn(weights, g).argmax()) for _ in range(4000))
    assert first[1] == 0
    for i in (0, 2, 3):
        assert abs(first[i] / 4000 - weights[i].item() / 8) < 0.03
