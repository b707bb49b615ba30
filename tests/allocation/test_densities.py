"""Densities proportional to a number of each shape, until a layer is full."""

import math

from hypothesis import given, settings
from hypothesis import strategies as st

from openwork.allocation import ERK, Balanced, Uniform, allocation
from tests.allocation.networks import LENET, shape, sizes


@settings(max_examples=40)
@given(st.lists(shape, min_size=1, max_size=5), st.sampled_from([0.1, 0.35, 0.8]))
def test_densities_are_proportional_until_a_layer_is_full(shapes, density):
    total = round(density * sum(sizes(shapes)))
    counts = ERK().counts(shapes, total)
    raw = [sum(s) / math.prod(s) for s in shapes]
    # A factor exists with count = min(size, factor * raw * size), to less than one connection.
    low = max((c - 1) / (r * n) for c, r, n in zip(counts, raw, sizes(shapes), strict=True))
    factors_up = [(c + 1) / (r * n) for c, r, n in zip(counts, raw, sizes(shapes), strict=True) if c < n]
    assert not factors_up or low <= min(factors_up) + 1e-9


@settings(max_examples=30)
@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 30)), min_size=1, max_size=5), st.floats(0, 1))
def test_degenerate_powers(shapes, density):
    total = round(density * sum(sizes(shapes)))
    assert ERK(power=0.0).counts(shapes, total) == Uniform().counts(shapes, total)
    assert allocation("er").counts(shapes, total) == allocation("erk").counts(shapes, total)


def test_balanced_gives_away_what_a_layer_cannot_hold():
    counts = Balanced().counts(LENET, round(0.1 * sum(sizes(LENET))))
    assert counts == [12810, 12810, 1000]
    assert Balanced().counts([(4, 5), (4, 5), (2, 5)], 15) == [5, 5, 5]
