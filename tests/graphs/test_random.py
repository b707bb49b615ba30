"""Small worlds and hubs: exact numbers of links, and the shapes they are known for."""

import pytest
import torch

from openwork.graphs import barabasi_albert, exchanged, shortest_paths, watts_strogatz


def is_graph(graph):
    return graph.dtype == torch.bool and torch.equal(graph, graph.T) and not bool(graph.diagonal().any())


@pytest.mark.parametrize(("nodes", "neighbours"), [(3, 2), (11, 4), (20, 6), (9, 8)])
@pytest.mark.parametrize("rewiring", [0.0, 0.3, 1.0])
def test_a_small_world_has_its_links(nodes, neighbours, rewiring):
    graph = watts_strogatz(nodes, neighbours, rewiring, seed=3)
    assert is_graph(graph)
    assert int(graph.sum()) == nodes * neighbours
    assert torch.equal(graph, watts_strogatz(nodes, neighbours, rewiring, seed=3))


def test_between_a_ring_and_chance():
    """A few far links make the world small; neighbours of a node are still neighbours (Watts & Strogatz, 1998)."""

    def path_length(graph):
        return float(shortest_paths(graph).distance.mean())

    def clustering(graph):
        a = graph.double()
        return float((a @ a @ a).diagonal().sum() / (a.sum(1) * (a.sum(1) - 1)).sum())

    ring, small, chance = (watts_strogatz(120, 6, p, seed=1) for p in (0.0, 0.08, 1.0))
    assert torch.equal(ring.sum(1), torch.full((120,), 6))
    assert clustering(ring) == pytest.approx(0.6)
    assert path_length(small) < 0.55 * path_length(ring)
    assert clustering(small) > 4 * clustering(chance)


def test_rewiring_leaves_about_as_many_links_as_it_should():
    ring = watts_strogatz(400, 4, 0.0)
    stayed = int((watts_strogatz(400, 4, 0.25, seed=2) & ring).sum()) / int(ring.sum())
    assert stayed == pytest.approx(0.75, abs=0.05)


@pytest.mark.parametrize(("nodes", "links"), [(2, 1), (9, 3), (30, 4), (5, 4)])
def test_hubs_have_their_links(nodes, links):
    graph = barabasi_albert(nodes, links, seed=5)
    assert is_graph(graph)
    assert int(graph.sum()) == 2 * links * (nodes - links)
    assert bool(shortest_paths(graph).distance.isfinite().all())
    assert torch.equal(graph, barabasi_albert(nodes, links, seed=5))
    assert int(graph[links + 1 :].sum(1).min()) >= links if nodes > links + 1 else True


def test_there_are_hubs():
    degrees = barabasi_albert(400, 3, seed=0).sum(1)
    assert int(degrees.max()) > 30  # a random graph of as many links has none above 17 or so
    assert int(degrees.median()) <= 4
    assert float(degrees[:20].double().mean()) > 4 * float(degrees[200:].double().mean())


def test_what_cannot_be():
    for wrong in (
        lambda: watts_strogatz(5, 3, 0.1),
        lambda: watts_strogatz(6, 6, 0.1),
        lambda: watts_strogatz(6, 2, 1.5),
        lambda: barabasi_albert(4, 4),
        lambda: barabasi_albert(4, 0),
    ):
        with pytest.raises(ValueError, match="got"):
            wrong()


def test_the_global_state_is_left_alone():
    with torch.random.fork_rng():
        before = torch.get_rng_state()
        watts_strogatz(20, 4, 0.5)
        barabasi_albert(20, 2)
        assert torch.equal(before, torch.get_rng_state())


def test_exchanged_links_leave_every_degree():
    g = torch.Generator().manual_seed(0)
    graph = torch.rand(23, 17, generator=g) < 0.2
    before = graph.clone()
    found = exchanged(graph, g)
    assert torch.equal(graph, before)
    assert torch.equal(found.sum(0), graph.sum(0))
    assert torch.equal(found.sum(1), graph.sum(1))
    assert int((found & graph).sum()) < 0.6 * int(graph.sum())
    for stuck in (torch.ones(3, 4, dtype=torch.bool), torch.zeros(3, 4, dtype=torch.bool)):
        assert torch.equal(exchanged(stuck, g), stuck)
