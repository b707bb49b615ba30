"""MEST drops by weight and gradient together."""

import dataclasses

import torch
from torch import nn

from openwork import MEST, SET, attach


def trained(method, steps=30):
    generator = torch.Generator().manual_seed(3)
    model = nn.Sequential(nn.Linear(13, 17), nn.Tanh(), nn.Linear(17, 3)).double()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=p.dtype) / 3)
    x = torch.randn(29, 13, generator=generator, dtype=torch.float64)
    y = torch.randint(3, (29,), generator=generator)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    sparsifier = attach(model, optimizer, method)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model, sparsifier


def test_without_pull_it_is_set_by_magnitude():
    mest = MEST(sparsity=0.7, steps=30, every=4, pull=0.0)
    same = SET(sparsity=0.7, steps=30, every=4, drop=mest.drop, drop_by="magnitude")
    for a, b in zip(trained(mest)[0].parameters(), trained(same)[0].parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_strong_pull_keeps_what_moves():
    """With the gradient alone deciding, the dropped connections are those of smallest gradient."""
    method = MEST(sparsity=0.5, steps=30, every=4, pull=1e6)
    _, sparsifier = trained(method, steps=3)
    connections = sparsifier.connections["0.weight"]
    gradient = connections.gradient.abs()
    survivors = method.survivors(connections, 0.25)
    assert gradient[survivors].min() >= gradient[~survivors].max()
    assert int((~survivors).sum()) == int(0.25 * connections.kept)


def test_pull_changes_the_topology():
    method = MEST(sparsity=0.7, steps=30, every=4, pull=50.0)
    plain = dataclasses.replace(method, pull=0.0)
    masks, others = trained(method)[1].masks, trained(plain)[1].masks
    assert any(not torch.equal(masks[name], others[name]) for name in masks)
