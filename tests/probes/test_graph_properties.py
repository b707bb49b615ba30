"""Properties of graphs against networkx, and on graphs whose properties are known."""

import networkx
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from openwork import barabasi_albert, graph_properties, watts_strogatz
from openwork.probes.graph_properties import Spread
from tests.graphs.test_levels import random_graph


@given(st.integers(1, 11), st.floats(0, 1), st.integers(0, 1000))
def test_against_networkx(nodes, density, seed):
    graph = random_graph(nodes, density, seed)
    known = networkx.from_numpy_array(graph.numpy())
    found = graph_properties(graph)
    assert (found.nodes, found.links) == (nodes, known.number_of_edges())
    assert found.density == pytest.approx(networkx.density(known))
    reached = [networkx.single_source_shortest_path_length(known, v) | {v: 0} for v in range(nodes)]
    furthest = [max(lengths.values()) for lengths in reached]
    assert found.diameter == max(furthest)
    for spread, values in (
        (found.eccentricity, furthest),
        (found.degree, [d for _, d in known.degree]),
        (found.closeness, list(networkx.closeness_centrality(known).values())),
    ):
        assert spread.mean == pytest.approx(np.mean(values))
        assert spread.deviation == pytest.approx(np.std(values), abs=1e-9)
    apart = [length for lengths in reached for length in lengths.values() if length]
    assert found.path_length == pytest.approx(np.mean(apart) if apart else 0.0)


def test_a_star_and_a_ring():
    star = graph_properties(barabasi_albert(6, 5))
    assert (star.levels, star.sources, star.sinks, star.diameter) == (2, 1, 5, 2)
    assert star.betweenness.mean == pytest.approx(1 / 6)  # all paths lead through the middle
    assert star.link_betweenness == Spread(pytest.approx(5 / 15), pytest.approx(0.0))
    ring = graph_properties(watts_strogatz(8, 2, 0.0))
    assert (ring.levels, ring.sources, ring.sinks, ring.diameter) == (8, 1, 1, 4)
    assert ring.degree == Spread(2.0, 0.0)
    assert ring.path_length == pytest.approx((1 + 1 + 2 + 2 + 3 + 3 + 4) / 7)


def test_as_numbers():
    numbers = graph_properties(watts_strogatz(8, 2, 0.0)).numbers()
    assert len(numbers) == 8 + 2 * 5
    assert numbers["degree mean"] == 2.0
    assert all(isinstance(value, float) for value in numbers.values())


def test_nodes_without_links():
    lonely = graph_properties(torch.zeros(3, 3, dtype=torch.bool))
    assert (lonely.levels, lonely.sources, lonely.sinks, lonely.links, lonely.diameter) == (1, 3, 3, 0, 0)
    assert lonely.path_length == 0.0
    assert graph_properties(torch.zeros(1, 1, dtype=torch.bool)).density == 0.0
