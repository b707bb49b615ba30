"""Squares against counting, and small-worldness where it is known."""

import itertools
import math

import networkx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from openwork import small_world
from openwork.probes.small_world import squares


def random_layer(outputs, inputs, density, seed):
    return torch.rand(outputs, inputs, generator=torch.Generator().manual_seed(seed)) < density


@given(st.integers(1, 6), st.integers(1, 6), st.floats(0, 1), st.integers(0, 1000))
def test_squares_by_counting(outputs, inputs, density, seed):
    graph = random_layer(outputs, inputs, density, seed)
    known = networkx.Graph([(f"o{i}", f"i{j}") for i, j in graph.nonzero().tolist()])
    paths = [
        (a, b, c, d)
        for b, c in itertools.chain.from_iterable(((u, v), (v, u)) for u, v in known.edges)
        for a in known[b]
        for d in known[c]
        if a != c and d != b
    ]
    closed = sum(known.has_edge(a, d) for a, _, _, d in paths)
    assert squares(graph) == pytest.approx(closed / len(paths) if paths else 0.0)


def lattice(n, reach):
    """Outputs and inputs on one ring, linked to the nearest."""
    i = torch.arange(n)
    apart = (i[:, None] - i).abs()
    return torch.minimum(apart, n - apart) <= reach


def test_a_ring_with_some_far_links_is_a_small_world():
    ring = lattice(60, 2)
    g = torch.Generator().manual_seed(1)
    mixed = ring.clone()
    for i, j in ring.nonzero().tolist():
        if float(torch.rand((), generator=g)) < 0.1:
            free = (~mixed[i]).nonzero().flatten()
            mixed[i, j], mixed[i, free[int(torch.randint(len(free), (1,), generator=g))]] = False, True
    plain, small, chance = (small_world(m, draws=3) for m in (ring, mixed, random_layer(60, 60, 1 / 12, 0)))
    assert small.sigma > plain.sigma
    assert small.sigma > 2.5
    assert chance.sigma == pytest.approx(1.0, abs=0.25)
    assert small.path_length < 0.7 * plain.path_length


def test_complete_and_empty():
    whole = small_world(torch.ones(4, 5, dtype=torch.bool))
    assert (whole.clustering, whole.sigma) == (1.0, 1.0)
    assert math.isnan(small_world(torch.zeros(4, 5, dtype=torch.bool)).sigma)
    taps = torch.zeros(4, 5, 3, 3, dtype=torch.bool)
    taps[..., 1, 2] = True
    assert small_world(taps) == whole
    with pytest.raises(ValueError, match="draws=0"):
        small_world(torch.ones(2, 2, dtype=torch.bool), draws=0)
