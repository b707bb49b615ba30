"""SNIP, GraSP and SynFlow: the masks that their scores mean, and what they do at extreme sparsity."""

import pytest
import torch
from torch import nn

from openwork.prune.grasp import GraSP
from openwork.prune.snip import SNIP
from openwork.prune.synflow import SynFlow
from openwork.pruner import sparsify_
from openwork.scores import grasp, snip, synflow

F = nn.functional


def net(depth=2, width=12, seed=0, bias=True):
    g = torch.Generator().manual_seed(seed)
    layers = [nn.Linear(6, width, bias=bias), nn.ReLU()]
    for _ in range(depth - 2):
        layers += [nn.Linear(width, width, bias=bias), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Linear(width, 3, bias=bias)).double()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=g) * p.shape[-1] ** -0.5)
    return model


def data():
    g = torch.Generator().manual_seed(1)
    return [(torch.randn(9, 6, generator=g).double(), torch.randint(3, (9,), generator=g)) for _ in range(2)]


def weights(model):
    return {n: p for n, p in model.named_parameters() if p.dim() == 2}


@pytest.mark.parametrize("cls", [SNIP, GraSP, SynFlow])
def test_the_highest_scores_of_the_network_stay(cls):
    model = net()
    scores = {
        SNIP: lambda: snip(model, weights(model), data(), F.cross_entropy),
        GraSP: lambda: grasp(model, weights(model), data(), F.cross_entropy, 200.0),
        SynFlow: lambda: synflow(model, weights(model), data()[0][0]),
    }[cls]()
    ranked = sorted(
        (
            (-s.item(), layer, i)
            for layer, name in enumerate(scores)
            for i, s in enumerate(scores[name].flatten())
        )
    )
    expected = {(layer, i) for _, layer, i in ranked[:31]}
    masks = sparsify_(model, cls(kept=31, rounds=1), data=data()).masks
    got = {
        (layer, i) for layer, m in enumerate(masks.values()) for i in m.flatten().nonzero().flatten().tolist()
    }
    assert got == expected


def test_grasp_keeps_what_is_signed():
    """Where removing a connection would help the gradient, it goes, however large its score is in absolute value."""
    model = net()
    scores = grasp(model, weights(model), data(), F.cross_entropy, 200.0)
    masks = sparsify_(model, GraSP(sparsity=0.6), data=data()).masks
    assert sum(int((s < 0).sum()) for s in scores.values()) > 20
    assert min(scores[n][m].min() for n, m in masks.items() if m.any()) >= max(
        scores[n][~m].max() for n, m in masks.items() if not m.all()
    )


def test_synflow_does_not_empty_a_layer_where_one_shot_rankings_do():
    def deep():
        model = net(depth=5, width=40, bias=False)
        with torch.no_grad():
            model[4].weight *= 1e-3
        return model

    def emptied(method):
        return [n for n, m in sparsify_(deep(), method, data=data()).masks.items() if not m.any()]

    assert not emptied(SynFlow(sparsity=0.99))
    assert emptied(SynFlow(sparsity=0.995, rounds=1)) or emptied(SNIP(sparsity=0.99))


def test_synflow_stays_connected_to_the_last():
    model = net(depth=4, width=20, bias=False)
    sparsify_(model, SynFlow(kept=4), data=data())
    absolute = torch.ones(1, 6).double()
    for p in weights(model).values():
        absolute = absolute @ p.detach().abs().T
    assert absolute.sum() > 0  # one path from input to output, made of the four connections


def test_dead_units_do_not_break_the_count():
    """Half of all scores are exactly zero: ties that a threshold would all keep."""
    model = net()
    with torch.no_grad():
        model[0].bias.fill_(-1e3)
    for cls in (SNIP, GraSP):
        pruned = sparsify_(model, cls(sparsity=0.3), data=data())
        assert sum(int(m.sum()) for m in pruned.masks.values()) == round(0.7 * 108)
