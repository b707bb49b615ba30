"""Levels: nothing leads back, and every level is one above the highest that leads to it."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from openwork.graphs import levels


def random_graph(nodes, density, seed):
    upper = (torch.rand(nodes, nodes, generator=torch.Generator().manual_seed(seed)) < density).triu(1)
    return upper | upper.T


@given(st.integers(1, 12), st.floats(0, 1), st.integers(0, 1000))
def test_each_level_is_one_above_those_that_lead_to_it(nodes, density, seed):
    graph = random_graph(nodes, density, seed)
    found = levels(graph).tolist()

    def longest(v):
        before = [longest(u) for u in range(v) if graph[u, v]]
        return 1 + max(before) if before else 0

    assert found == [longest(v) for v in range(nodes)]
    assert all(found[u] < found[v] for u, v in graph.triu().nonzero().tolist())


def test_a_chain_and_a_crowd():
    chain = torch.zeros(5, 5, dtype=torch.bool)
    chain[range(4), range(1, 5)] = True
    assert levels(chain | chain.T).tolist() == [0, 1, 2, 3, 4]
    assert levels(~torch.eye(4, dtype=torch.bool)).tolist() == [0, 1, 2, 3]
    assert levels(torch.zeros(3, 3, dtype=torch.bool)).tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    "wrong",
    [
        torch.ones(3, 3, dtype=torch.bool),
        torch.ones(3, 3).triu(1) > 0,
        torch.zeros(2, 3, dtype=torch.bool),
        torch.zeros(3, 3),
    ],
)
def test_what_is_no_graph(wrong):
    with pytest.raises(ValueError, match=r"got|go both ways"):
        levels(wrong)
