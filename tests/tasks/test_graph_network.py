"""Networks on graphs: they compute what their nodes say, and only links are connections."""

import pytest
import torch
from torch import nn

from openwork import SET, KeepZeros, attach, barabasi_albert, graph_network, recurrent_masks, watts_strogatz
from openwork.graphs import levels
from tests.graphs.test_levels import random_graph


def node_by_node(model, graph, x):
    """The outputs, node by node in the order of their numbers."""
    level = levels(graph)
    order = level.argsort(stable=True).tolist()
    row = {node: i for i, node in enumerate(order)}
    first = {number: min(row[v] for v in order if level[v] == number) for number in set(level.tolist())}
    value = {}
    for v in range(len(graph)):
        number = int(level[v])
        layer = model.levels[number - 1] if number else model.entry
        unit = row[v] - first[number]
        total = layer.bias[unit].expand(len(x)).clone()
        if number:
            for u in range(v):
                if graph[u, v]:
                    total = total + layer.weight[unit, row[u]] * value[u]
        else:
            total = total + x.flatten(1) @ layer.weight[unit]
        value[v] = torch.tanh(total)
    sinks = [v for v in order if not bool(graph[v, v + 1 :].any())]
    return torch.stack([value[v] for v in sinks], 1) @ model.exit.weight.T + model.exit.bias


@pytest.mark.parametrize("seed", range(6))
def test_it_computes_what_its_nodes_say(seed):
    graph = random_graph(11, 0.3, seed)
    model = graph_network(graph, 7, 4, nn.Tanh, seed=seed).double()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * (p != 0) * torch.ones_like(p))
    x = torch.randn(5, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    torch.testing.assert_close(model(x), node_by_node(model, graph, x))
    assert sum(int(mask.sum()) for mask in model.masks.values()) == int(graph.sum()) // 2


def test_without_skips_it_is_a_perceptron_under_masks():
    """Two levels, all links between them: the plain layers of a perceptron."""
    graph = torch.zeros(9, 9, dtype=torch.bool)
    graph[:5, 5:] = torch.rand(5, 4, generator=torch.Generator().manual_seed(0)) < 0.6
    graph[0, 5:], graph[:5, 5] = True, True
    graph |= graph.T.clone()
    model = graph_network(graph, 6, 3)
    plain = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))
    with torch.no_grad():
        for to, source in zip(plain[::2], (model.entry, model.levels[0], model.exit), strict=True):
            to.weight.copy_(source.weight)
            to.bias.copy_(source.bias)
    x = torch.randn(8, 6)
    torch.testing.assert_close(model(x), plain(x))
    assert torch.equal(model.levels[0].weight != 0, graph[5:, :5])


def test_only_links_are_connections_and_stay_so():
    graph = barabasi_albert(20, 3, seed=2)
    model = graph_network(graph, 6, 3, seed=4)
    assert all(torch.equal(model.get_parameter(name) != 0, mask) for name, mask in model.masks.items())
    assert torch.equal(model(torch.ones(1, 6)), graph_network(graph, 6, 3, seed=4)(torch.ones(1, 6)))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    sparsifier = attach(model, optimizer, KeepZeros())
    g = torch.Generator().manual_seed(6)
    x, y = torch.randn(16, 6, generator=g), torch.randint(3, (16,), generator=g)
    losses = []
    for _ in range(40):
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    assert sum(sparsifier.masks[name].sum() for name in model.masks) == int(graph.sum()) // 2
    assert all(torch.equal(model.get_parameter(name) != 0, mask) for name, mask in model.masks.items())


def test_signals_keep_their_size():
    """He's variance for the links a unit has, however few: hidden units neither die out nor explode."""
    graph = watts_strogatz(300, 6, 0.2, seed=0)
    model = graph_network(graph, 50, 10, seed=1)
    x = torch.randn(200, 50, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        units = model.activation(model.entry(x))
        for level in model.levels:
            units = torch.cat([units, model.activation(level(units))], 1)
    late = units[:, -60:].square().mean()
    assert 0.2 < float(late / units[:, :60].square().mean()) < 5.0


@pytest.mark.parametrize(("cell", "gates"), [(nn.LSTM, 4), (nn.GRU, 3), (nn.RNN, 1), (nn.LSTMCell, 4)])
def test_hidden_units_are_linked_alike_in_all_gates(cell, gates):
    graph = watts_strogatz(8, 4, 0.5, seed=1)
    model = nn.Sequential(cell(5, 8))
    masks = recurrent_masks(model, graph)
    part = "0.weight_hh" + ("" if cell is nn.LSTMCell else "_l0")
    assert list(masks) == [part]
    chunks = masks[part].chunk(gates)
    assert all(torch.equal(chunk, graph) for chunk in chunks)
    row_repeated = graph.repeat_interleave(gates, 0)
    assert gates == 1 or not torch.equal(masks[part], row_repeated)
    method = SET(exclude=("*weight_ih*",), steps=9, every=3)
    sparsifier = attach(model, torch.optim.SGD(model.parameters(), lr=0.1), method, masks=masks)
    assert sparsifier.kept == gates * int(graph.sum())


def test_all_layers_and_both_directions():
    model = nn.LSTM(5, 6, num_layers=2, bidirectional=True)
    masks = recurrent_masks(model, watts_strogatz(6, 2, 0.0))
    assert set(masks) == {f"weight_hh_l{i}{direction}" for i in (0, 1) for direction in ("", "_reverse")}


def test_what_cannot_be():
    with pytest.raises(ValueError, match=r"weight_hh_l0 links 6 units .* and the graph has 5 nodes"):
        recurrent_masks(nn.GRU(3, 6), torch.ones(5, 5, dtype=torch.bool))
    with pytest.raises(ValueError, match="has no recurrent layer"):
        recurrent_masks(nn.Linear(3, 3), torch.ones(3, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"boolean \[n, n\]"):
        recurrent_masks(nn.GRU(3, 6), torch.ones(6, 6))
