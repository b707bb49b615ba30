"""Recurrent networks: which of their matrices can go, by which rule, on strings of the Reber grammar."""

import pytest
import torch
from torch import nn

from openwork import KeepZeros, Magnitude, attach, barabasi_albert, recurrent_masks, sparsify_, watts_strogatz
from openwork.tasks import evaluate, fit
from openwork.tasks.reber import SYMBOLS, reber


class Judge(nn.Module):
    """Reads a string and says whether it is grammatical."""

    def __init__(self, cell=nn.LSTM, hidden=32):
        super().__init__()
        g = torch.Generator().manual_seed(0)
        with torch.random.fork_rng(devices=[]):
            self.rnn, self.out = cell(len(SYMBOLS), hidden, batch_first=True), nn.Linear(hidden, 2)
        with torch.no_grad():
            for p in self.parameters():
                p.copy_((torch.rand(p.shape, generator=g) * 2 - 1) / hidden**0.5)

    def forward(self, x):
        return self.out(self.rnn(x)[0][:, -1])


HIDDEN, INPUT = ("rnn.weight_ih*", "out.*"), ("rnn.weight_hh*", "out.*")
"""What to exclude in order to prune between hidden units, and from the inputs."""


@pytest.fixture(scope="module")
def task():
    return reber()


@pytest.fixture(scope="module")
def trained(task):
    model = Judge()
    fit(model, task, optimizer=torch.optim.Adam(model.parameters(), lr=0.01), steps=250)
    return model


def pruned(trained, task, sparsity, exclude, steps=0):
    model = Judge()
    model.load_state_dict(trained.state_dict())
    masks = sparsify_(model, Magnitude(sparsity=sparsity, exclude=exclude)).masks
    if steps:
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        attach(model, optimizer, KeepZeros(exclude=exclude), masks=masks)
        fit(model, task, optimizer=optimizer, steps=steps, seed=3)
    return evaluate(model, task.test).accuracy


def test_what_a_trained_lstm_can_do_without(trained, task):
    """The figures of this run, as they came out. A half of either matrix can go, and a little training mends 90 %. That an LSTM
    can do without more of its recurrent than of its input weights (Darji, 2024) did not show here."""
    found = {
        "dense": evaluate(trained, task.test).accuracy,
        "hidden 50": pruned(trained, task, 0.5, HIDDEN),
        "input 50": pruned(trained, task, 0.5, INPUT),
        "hidden 90": pruned(trained, task, 0.9, HIDDEN),
        "input 90": pruned(trained, task, 0.9, INPUT),
        "hidden 90 mended": pruned(trained, task, 0.9, HIDDEN, steps=100),
        "input 90 mended": pruned(trained, task, 0.9, INPUT, steps=100),
    }
    assert found == pytest.approx(GOLDEN, abs=0.08)


GOLDEN = {
    "dense": 0.955,
    "hidden 50": 0.9375,
    "input 50": 0.955,
    "hidden 90": 0.5,
    "input 90": 0.585,
    "hidden 90 mended": 0.9325,
    "input 90 mended": 0.94,
}


def test_the_rules(trained):
    """Class-blind: one threshold; class-uniform: one sparsity; class-distribution: one multiple of each deviation."""
    weights = {n: p.detach() for n, p in trained.named_parameters() if n.startswith("rnn.weight")}
    kept = {}
    for rule in ("global", "uniform", "deviation"):
        model = Judge()
        model.load_state_dict(trained.state_dict())
        kept[rule] = sparsify_(model, Magnitude(sparsity=0.7, allocation=rule, exclude=("out.*",))).masks
    for n, w in weights.items():
        assert float(kept["uniform"][n].double().mean()) == pytest.approx(0.3, abs=1e-3)
        deviation = w.square().mean().sqrt()
        assert bool(kept["global"][n].any())
        assert float(w[kept["deviation"][n]].abs().min() / deviation) > 0
    least = {
        rule: [float(weights[n][m].abs().min()) for n, m in masks.items()] for rule, masks in kept.items()
    }
    most = {
        rule: [float(weights[n][~m].abs().max()) for n, m in masks.items()] for rule, masks in kept.items()
    }
    assert max(most["global"]) <= min(least["global"])
    scales = [float(w.square().mean().sqrt()) for w in weights.values()]
    standard = {
        k: [v / s for v, s in zip(found["deviation"], scales, strict=True)]
        for k, found in (("least", least), ("most", most))
    }
    assert max(standard["most"]) <= min(standard["least"]) + 1e-6


@pytest.mark.parametrize(("cell", "gates"), [(nn.LSTM, 4), (nn.GRU, 3), (nn.RNN, 1)])
def test_gates_share_a_mask(cell, gates):
    model = Judge(cell, hidden=8)
    masks = sparsify_(model, Magnitude(sparsity=0.6, pattern=f"gates {gates}", exclude=("out.*",))).masks
    for mask in masks.values():
        first, *others = mask.chunk(gates)
        assert all(torch.equal(first, other) for other in others)
        assert 0 < int(first.sum()) < first.numel()


@pytest.mark.parametrize("cell", ["LSTM", "GRU"])
@pytest.mark.parametrize("graph", ["small world", "hubs"])
def test_hidden_units_linked_as_in_a_random_graph(task, cell, graph):
    """A fifth of the links between hidden units, drawn before training, are enough to learn the grammar."""
    links = watts_strogatz(32, 6, 0.3) if graph == "small world" else barabasi_albert(32, 3)
    model = Judge(getattr(nn, cell))
    masks = recurrent_masks(model, links)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    sparsifier = attach(model, optimizer, KeepZeros(exclude=HIDDEN), masks=masks)
    fit(model, task, optimizer=optimizer, steps=250)
    weight = model.rnn.weight_hh_l0
    assert sparsifier.kept == len(weight) // 32 * int(links.sum())
    assert all(torch.equal(chunk != 0, links) for chunk in weight.chunk(len(weight) // 32))
    assert evaluate(model, task.test).accuracy == pytest.approx(ON_GRAPHS[cell, graph], abs=0.05)


ON_GRAPHS = {
    ("LSTM", "small world"): 0.9575,
    ("LSTM", "hubs"): 0.9675,
    ("GRU", "small world"): 0.9925,
    ("GRU", "hubs"): 0.97,
}
