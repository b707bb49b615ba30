"""Every method on every kind of layer: a few steps, exact counts, zeros that stay zero. A cell of the matrix is a test."""

import dataclasses

import pytest
import torch
from torch import nn

from openwork import BDWP, SSVI, attach, plan, sparsify_
from openwork.allocation import allocation
from openwork.method import registry
from openwork.patterns import Groups, pattern
from openwork.plan import wanted_total
from openwork.pruner import Pruning
from openwork.sparsifier import Training

STEPS = 7


class Conv1D(nn.Module):
    """The contract of transformers' layer of that name: inputs first, ``nf`` outputs."""

    def __init__(self, nf, nx):
        super().__init__()
        self.nf, self.nx = nf, nx
        self.weight = nn.Parameter(torch.empty(nx, nf))
        self.bias = nn.Parameter(torch.zeros(nf))

    def forward(self, x):
        return torch.addmm(self.bias, x.view(-1, x.shape[-1]), self.weight).view(*x.shape[:-1], self.nf)


class SmallExperts(nn.Module):
    """The weights of all experts in one parameter ``[experts, out, in]``."""

    def __init__(self, experts, inputs, outputs):
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.empty(experts, outputs, inputs))

    def forward(self, x):
        return torch.einsum("ni,eoi->no", x, self.gate_up_proj)


class First(nn.Module):
    """The sequence that a recurrent or attention layer returns, averaged over time."""

    def __init__(self, layer, attends=False):
        super().__init__()
        self.layer, self.attends = layer, attends

    def forward(self, x):
        outputs = self.layer(x, x, x, need_weights=False) if self.attends else self.layer(x)
        return outputs[0].mean(1)


def image(channels):
    return lambda g: torch.randn(6, channels, 5, 5, generator=g)


def row(g):
    return torch.randn(6, 8, generator=g)


def sequence(g):
    return torch.randn(6, 4, 8, generator=g)


def tokens(g):
    return torch.randint(12, (6,), generator=g)


# kind -> (layer, features that leave it, inputs, names of its weights, what must be included by name)
KINDS = {
    "linear": (lambda: nn.Linear(8, 12), 12, row, ["weight"], ()),
    "conv": (lambda: nn.Conv2d(8, 4, 3), 36, image(8), ["weight"], ()),
    "grouped": (lambda: nn.Conv2d(8, 4, 3, groups=2), 36, image(8), ["weight"], ()),
    "depthwise": (lambda: nn.Conv2d(8, 8, 3, groups=8), 72, image(8), ["weight"], ()),
    "transposed": (lambda: nn.ConvTranspose2d(8, 4, 2), 144, image(8), ["weight"], ()),
    "grouped transposed": (lambda: nn.ConvTranspose2d(8, 4, 2, groups=2), 144, image(8), ["weight"], ()),
    "rnn": (
        lambda: First(nn.RNN(8, 4, batch_first=True)),
        4,
        sequence,
        ["layer.weight_ih_l0", "layer.weight_hh_l0"],
        (),
    ),
    "lstm": (
        lambda: First(nn.LSTM(8, 4, batch_first=True)),
        4,
        sequence,
        ["layer.weight_ih_l0", "layer.weight_hh_l0"],
        (),
    ),
    "gru": (
        lambda: First(nn.GRU(8, 4, batch_first=True)),
        4,
        sequence,
        ["layer.weight_ih_l0", "layer.weight_hh_l0"],
        (),
    ),
    "embedding": (lambda: nn.Embedding(12, 8), 8, tokens, ["weight"], ("0.weight",)),
    "attention": (
        lambda: First(nn.MultiheadAttention(8, 2, batch_first=True), attends=True),
        8,
        sequence,
        ["layer.in_proj_weight", "layer.out_proj.weight"],
        (),
    ),
    "conv1d": (lambda: Conv1D(12, 8), 12, row, ["weight"], ()),
    "experts": (lambda: SmallExperts(3, 8, 4), 4, row, ["gate_up_proj"], ()),
}
OWN_BACKWARD = {"linear", "conv", "grouped", "depthwise"}
"""Layers through which BDWP can send gradients by a mask of their own; of the others it says so."""
NOISY = {"linear", "conv", "grouped", "depthwise"}
"""Layers to whose outputs SSVI adds noise; others it refuses."""
METHODS = {name: cls for name, cls in registry().items() if issubclass(cls, (Training, Pruning))}


def network(kind):
    """The layer, then a linear one: inputs of the kind to three classes."""
    make, features, *_ = KINDS[kind]
    g = torch.Generator().manual_seed(3)
    with torch.random.fork_rng(devices=[]):
        model = nn.Sequential(make(), nn.Flatten(), nn.Tanh(), nn.Linear(features, 3)).double()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=g, dtype=torch.float64) * 0.4)
    return model


def data(kind, count):
    g = torch.Generator().manual_seed(4)
    found = []
    for _ in range(count):
        x = KINDS[kind][2](g)
        found.append((x.double() if x.is_floating_point() else x, torch.randint(3, (6,), generator=g)))
    return found


def method_for(cls, kind):
    fields = {f.name for f in dataclasses.fields(cls)}
    short = {"steps": STEPS, "every": 2, "trials": 3}
    options = {name: value for name, value in short.items() if name in fields}
    if cls is BDWP and kind not in OWN_BACKWARD:
        options["backward"] = "same"
    return cls(sparsity=0.5, include=KINDS[kind][4], **options)


def prepared(cls, kind):
    model, method = network(kind), method_for(cls, kind)
    if method.reads_zeros:
        with torch.no_grad():
            for found in plan(model, method).sparse:
                found.weight.parameter.view(-1)[::3] = 0.0
    return model, method


def zeros_are_zero(masks, layout):
    return all(
        int((found.weight.oriented(found.weight.parameter.detach())[~masks[found.name]] != 0).sum()) == 0
        for found in layout.sparse
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", METHODS)
def test_exact_counts_and_zeros(name, kind):
    model, method = prepared(METHODS[name], kind)
    if isinstance(method, SSVI) and kind not in NOISY:
        with pytest.raises(ValueError, match="linear layers and convolutions"):
            attach(model, torch.optim.SGD(model.parameters(), lr=0.1), method)
        return
    names = [f"0.{weight}" for weight in KINDS[kind][3]]
    planned = {found.name: found for found in plan(model, method)}
    for weight in names:
        assert planned[weight].sparse or "does not fit" in planned[weight].why
    if isinstance(method, Pruning):
        pruned = sparsify_(model, method, data=data(kind, 2))
        layout, masks = pruned.plan, pruned.masks
        assert zeros_are_zero(masks, layout)
    else:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        sparsifier = attach(model, optimizer, method)
        layout = sparsifier.plan
        for x, y in data(kind, STEPS):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
            assert zeros_are_zero(sparsifier.masks, layout)
        masks = sparsifier.masks
        assert sparsifier.updates == 0 or sparsifier.skipped == 0
    kept = {found: int(mask.sum()) for found, mask in masks.items()}
    moves = isinstance(method, Training) and (
        method.redistributes or allocation(method.allocation).needs_scores
    )
    for found in layout.sparse:
        if method.whole_units:
            assert found.kept - found.shape[0] < kept[found.name] <= found.kept
        elif not moves:
            assert kept[found.name] == found.kept
        assert method.reads_zeros or found.pattern.allows(masks[found.name])
    asked = wanted_total(method, layout.numel) if not method.reads_zeros else 0
    steps = sum(
        grid.rows * grid.atom for grid in (found.pattern.grid(found.shape) for found in layout.sparse)
    )
    if moves and isinstance(pattern(method.pattern), Groups):  # each count is rounded down to whole units
        assert asked - steps < sum(kept.values()) <= asked
    elif not method.whole_units:
        assert sum(kept.values()) == sum(found.kept for found in layout.sparse)
    assert all(bool(p.isfinite().all()) for p in model.parameters())


@pytest.mark.parametrize("kind", sorted(KINDS.keys() - OWN_BACKWARD - {"grouped transposed"}))
def test_a_backward_mask_that_cannot_be_is_refused_by_name(kind):
    model = network(kind)
    with pytest.raises(ValueError, match="exclude it, or use backward='same'"):
        attach(model, torch.optim.SGD(model.parameters(), lr=0.1), BDWP(include=KINDS[kind][4]))
