"""Links that the graph of the connections foretells."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from openwork.graphs import ch3_l3
from openwork.growth import CH3L3
from tests.growth.sites import Graph, generator


@settings(max_examples=30)
@given(st.integers(1, 8), st.integers(1, 9), st.floats(0, 1), st.integers(0, 99), st.data())
def test_links_are_predicted_from_the_graph_alone(outputs, inputs, density, seed, data):
    adjacency = torch.rand(outputs, inputs, generator=generator(seed)) < density
    taken = adjacency.flatten().nonzero().flatten()
    k = data.draw(st.integers(0, outputs * inputs - taken.numel()))
    scores = ch3_l3(adjacency)
    for soft in (True, False):
        grown = CH3L3(soft).places(Graph(outputs, inputs), taken, torch.tensor([k]), generator(seed))
        chosen = torch.zeros_like(adjacency)
        chosen.view(-1)[grown] = True
        assert grown.tolist() == sorted(set(grown.tolist()))
        assert int(chosen.sum()) == k
        assert not (chosen & adjacency).any()
        if k and k < int((~adjacency).sum()):
            left = scores[~chosen & ~adjacency]
            if soft:  # what has no score comes last
                assert not (scores[chosen] == 0).any() or (left == 0).all()
            else:
                assert scores[chosen].min() >= left.max() - 1e-12


def test_a_complete_graph_has_no_place_to_grow():
    taken = torch.arange(12)
    assert CH3L3().places(Graph(3, 4), taken, torch.tensor([0]), generator()).numel() == 0
