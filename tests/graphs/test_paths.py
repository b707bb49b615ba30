"""Shortest paths against a search from every node, and what leads through where against networkx."""

import networkx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from openwork.graphs import shortest_paths
from tests.graphs.test_levels import random_graph


@given(st.integers(1, 11), st.floats(0, 1), st.integers(0, 1000))
def test_against_networkx(nodes, density, seed):
    graph = random_graph(nodes, density, seed)
    known = networkx.from_numpy_array(graph.numpy())
    paths = shortest_paths(graph)
    lengths = dict(networkx.all_pairs_shortest_path_length(known))
    for s in range(nodes):
        for t in range(nodes):
            assert paths.distance[s, t] == lengths[s].get(t, torch.inf)
            if t in lengths[s]:
                ways = [*networkx.all_shortest_paths(known, s, t)]
                assert paths.count[s, t] == len(ways)
    if nodes > 2:
        expected = networkx.betweenness_centrality(known)
        assert paths.through_nodes().tolist() == pytest.approx([expected[v] for v in range(nodes)])
    of_links = networkx.edge_betweenness_centrality(known)
    links = graph.triu().nonzero().tolist()
    assert paths.along_links().tolist() == pytest.approx([of_links[u, v] for u, v in links])


def test_nothing_is_changed():
    graph = random_graph(6, 0.5, 0)
    before = graph.clone()
    shortest_paths(graph).through_nodes()
    assert torch.equal(graph, before)
