"""GSE draws its candidates as it says, ranks them by the true gradient, and never needs a dense one."""

import math

import pytest
import torch
from torch import nn

from openwork import SparseLinear, attach, to_sparse_
from openwork.growth import Gradient
from openwork.patterns import Unstructured
from openwork.train.gse import GSE, Sampled


class Site:
    """A site with known activations; only what is asked of it is computed."""

    def __init__(self, x, dy):
        self.x, self.dy, self.device = x, dy, x.device
        self.grid = Unstructured().grid((dy.shape[1], x.shape[1]))
        self.asked = []

    def activations(self):
        return [(self.x[:3], self.dy[:3]), (self.x[3:], self.dy[3:])]

    def gradient_at(self, places):
        self.asked.append(places)
        return (self.dy.T @ self.x).flatten()[places].abs()

    def gradient_tiles(self):
        yield 0, (self.dy.T @ self.x).flatten().abs()

    def momentum_tiles(self):
        raise AssertionError


def site(outputs=13, inputs=17, samples=8, seed=0):
    g = torch.Generator().manual_seed(seed)
    scale = torch.rand(inputs, generator=g) ** 3
    return Site(
        (torch.randn(samples, inputs, generator=g) * scale).double(),
        torch.randn(samples, outputs, generator=g).double(),
    )


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("guide", ["grabo", "graest", "uniform"])
def test_the_best_of_the_candidates_are_grown(guide):
    here = site()
    taken = torch.tensor([0, 5, 20, 100, 220])
    grown = Sampled(guide, 4.0).places(here, taken, torch.tensor([6]), generator())
    candidates = here.asked[0]
    assert not set(candidates.tolist()) & set(taken.tolist())
    assert len(candidates) <= 4 * 11
    scores = here.gradient_at(candidates)
    best = candidates[scores.sort(descending=True, stable=True).indices[:6]]
    assert grown.tolist() == sorted(best.tolist())


def test_candidates_are_drawn_in_proportion_to_the_activations():
    here = site()
    counts = torch.zeros(13 * 17)
    g, draws = generator(1), 40
    for _ in range(3000):
        rows = Sampled("grabo")._drawn(here, draws, g)
        counts[rows] += 1
    p = torch.outer(here.dy.abs().sum(0), here.x.abs().sum(0)).flatten()
    expected = 1 - (1 - p / p.sum()) ** draws
    assert float((counts / 3000 - expected).abs().max()) < 0.04
    uniform = Sampled("uniform")._weights(here, 13, 17, g)
    assert not uniform[0].any()
    assert not uniform[1].any()


def test_random_signs_estimate_the_gradient():
    here = site(4, 5)
    g = generator(2)
    total = torch.zeros(4, 5, dtype=torch.float64)
    for _ in range(4000):
        sign = (torch.randint(2, (8, 1), generator=g) * 2 - 1).double()
        total += torch.outer((here.dy * sign).sum(0), (here.x * sign).sum(0))
    gradient = here.dy.T @ here.x
    assert float((total / 4000 - gradient).abs().max()) < 0.1 * float(gradient.abs().max()) + 0.2


def test_all_places_are_rigl():
    here = site()
    taken, vacant = torch.tensor([3, 4, 90]), torch.tensor([7])
    expected = Gradient().places(here, taken, vacant, generator())
    assert torch.equal(Sampled(gamma=math.inf).places(here, taken, vacant, generator()), expected)
    most = torch.arange(150)  # more than half is kept
    expected = Gradient().places(here, most, vacant, generator())
    assert torch.equal(Sampled().places(here, most, vacant, generator()), expected)


def test_a_sample_that_is_too_small_is_filled_up():
    here = site()
    here.x[:, 1:] = 0  # everything points at one input
    taken = torch.arange(0, 26) * 8
    grown = Sampled(gamma=0.1).places(here, taken, torch.tensor([30]), generator())
    assert len(set(grown.tolist())) == 30
    assert not set(grown.tolist()) & set(taken.tolist())


def test_activations_that_are_not_finite_are_refused():
    here = site()
    here.x[0, 0] = torch.nan
    with pytest.raises(FloatingPointError, match="NaN or infinity"):
        Sampled().places(here, torch.tensor([1]), torch.tensor([2]), generator())


def test_nothing_dense_is_computed(monkeypatch):
    def dense(*_):
        raise AssertionError("a dense gradient was asked for")

    monkeypatch.setattr("openwork.connections.StoredConnections.gradient_tiles", dense)
    model = nn.Sequential(SparseLinear(60, 50, sparsity=0.9), nn.ReLU(), SparseLinear(50, 40, sparsity=0.9))
    method = GSE(steps=10, every=2, replace=False)
    opt = torch.optim.Adam(model.parameters(), lr=0.01)
    sparsifier = attach(model, opt, method)
    before = sparsifier.masks
    for _ in range(10):
        opt.zero_grad()
        model(torch.randn(8, 60)).square().sum().backward()
        opt.step()
    assert sparsifier.updates == 3
    assert sparsifier.kept == round(0.1 * 3000) + round(0.1 * 2000)
    assert any(not torch.equal(before[name], mask) for name, mask in sparsifier.masks.items())
    assert not any(c.layer.observations for c in sparsifier.connections.values())


def test_a_masked_layer_is_guided_by_what_passes_through_it():
    """The pairs of a masked linear layer multiply to its dense gradient, of the last batches only."""
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(inplace=True), nn.Conv1d(1, 2, 3)).double()
    method = GSE(sparsity=0.8, steps=10, every=1, replace=False)
    sparsifier = attach(model, None, method)
    for batches in (1, 2):
        model.zero_grad()
        for _ in range(batches):
            model(torch.randn(7, 1, 6).double()).square().sum().backward()
    for c in sparsifier.connections.values():
        total = sum(dy.T @ x for x, dy in c.activations())
        torch.testing.assert_close(total.flatten().abs(), next(iter(c.gradient_tiles()))[1])
    sparsifier.detach()
    assert not model[0]._forward_hooks


def test_both_storages_draw_the_same():
    masks = []
    for stored in (False, True):
        g = generator(3)
        model = nn.Sequential(nn.Linear(12, 20), nn.Tanh(), nn.Linear(20, 9)).double()
        with torch.no_grad():
            for p in model.parameters():
                p.copy_(torch.randn(p.shape, generator=g))
        method = GSE(sparsity=0.8, steps=12, every=3, guide="graest")
        if stored:
            to_sparse_(model, method)
        opt = torch.optim.SGD(model.parameters(), lr=0.05)
        sparsifier = attach(model, opt, method)
        for _ in range(12):
            opt.zero_grad()
            model(torch.randn(5, 12, generator=g).double()).square().sum().backward()
            opt.step()
        masks.append(sparsifier.masks)
    assert all(torch.equal(masks[0][name], masks[1][name]) for name in masks[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"guide": "magic"}, "unknown guide"),
        ({"gamma": 0.0}, "more than 0"),
        ({"grow": "random"}, "use RigL"),
        ({"pattern": "2:4"}, "single connections"),
    ],
)
def test_what_it_cannot_do(options, message):
    with pytest.raises(ValueError, match=message):
        GSE(**options)
