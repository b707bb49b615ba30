"""RigL against a plain re-computation of its update with dense tensors."""

import copy
import math

import pytest
import torch
from torch import nn

from openwork.sparsifier import attach
from openwork.train.rigl import RigL
from openwork.train.set import SET

F = nn.functional


def net(seed=0):
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(36, 7), nn.Tanh(), nn.Linear(7, 3)
    )
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=g) * 0.5)
    return model.double()


def batch(t):
    g = torch.Generator().manual_seed(100 + t)
    return torch.randn(6, 2, 5, 5, generator=g).double(), torch.randint(3, (6,), generator=g)


def loss_of(model, t):
    x, y = batch(t)
    return F.cross_entropy(model(x), y)


def learn(model, optimizer, t):
    optimizer.zero_grad()
    loss_of(model, t).backward()
    optimizer.step()


def largest(scores, places, k):
    return set(sorted(places, key=lambda i: (-scores[i].item(), i))[:k])


@pytest.mark.parametrize("seed", range(4))
def test_an_update_is_the_algorithm_of_the_paper(seed):
    steps, every = 40, 5
    model = net(seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
    sparsifier = attach(model, optimizer, RigL(sparsity=0.7, steps=steps, every=every, seed=seed))
    for t in range(1, steps + 1):
        due = t % every == 0 and t <= 0.75 * steps
        before = copy.deepcopy(model)
        buffers = {p: s["momentum_buffer"].clone() for p, s in optimizer.state.items()}
        masks = sparsifier.masks
        learn(model, optimizer, t)
        if not due:
            assert all(torch.equal(m, sparsifier.masks[n]) for n, m in masks.items())
            continue
        # the dense gradient, at the weights before the update, by autograd on a copy that nobody guards
        weights = dict(before.named_parameters())
        gradients = dict(
            zip(weights, torch.autograd.grad(loss_of(before, t), list(weights.values())), strict=True)
        )
        alpha = 0.3 / 2 * (1 + math.cos(math.pi * t / (0.75 * steps)))
        for name, c in sparsifier.connections.items():
            weight, gradient = weights[name].detach().flatten(), gradients[name].flatten().abs()
            active = set(masks[name].flatten().nonzero().flatten().tolist())
            k = math.floor(alpha * len(active))
            survivors = largest(weight.abs(), active, len(active) - k)
            grown = largest(gradient, set(range(weight.numel())) - survivors, k)
            assert set(c.positions.tolist()) == survivors | grown
            after = c.weight.parameter.detach().flatten()
            momentum = optimizer.state[c.weight.parameter]["momentum_buffer"].flatten()
            old = buffers[c.weight.parameter].flatten()
            for i in range(weight.numel()):
                stayed = i in active and i in survivors | grown
                assert after[i] == (weight[i] if stayed else 0.0)  # the update took the place of the step
                assert momentum[i] == (old[i] if stayed else 0.0)
    assert sparsifier.updates == 6


def test_the_loss_changes_through_dropped_links_only():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparsifier = attach(model, optimizer, RigL(sparsity=0.6, steps=20, every=3))
    for t in (1, 2):
        learn(model, optimizer, t)
    masks, before = sparsifier.masks, copy.deepcopy(model)
    learn(model, optimizer, 3)
    with torch.no_grad():
        for name, p in before.named_parameters():
            if name in masks:
                p *= sparsifier.masks[name]
        assert loss_of(model, 9) == loss_of(before, 9)


def test_batches_that_accumulate_are_ranked_together():
    outcomes = []
    for parts in (1, 3):
        model = net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        sparsifier = attach(model, optimizer, RigL(sparsity=0.7, steps=20, every=1))
        x, y = batch(0)
        for i in range(parts):
            rows = slice(i * 6 // parts, (i + 1) * 6 // parts)
            (F.cross_entropy(model(x[rows]), y[rows]) / parts).backward()
        optimizer.step()
        outcomes.append(sparsifier.masks)
    assert all(torch.equal(m, outcomes[1][n]) for n, m in outcomes[0].items())


def test_growing_at_random_is_set():
    masks = []
    for method in (
        RigL(sparsity=0.7, steps=20, every=3, grow="random", drop=0.3, replace=False),
        SET(sparsity=0.7, steps=20, every=3, drop=0.3, drop_by="magnitude", until=0.75),
    ):
        model = net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        sparsifier = attach(model, optimizer, method)
        for t in range(20):
            learn(model, optimizer, t)
        masks.append(sparsifier.masks)
    assert all(torch.equal(m, masks[1][n]) for n, m in masks[0].items())


def test_dropping_nothing_changes_nothing():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparsifier = attach(model, optimizer, RigL(sparsity=0.7, steps=20, every=2, drop=0.0, replace=False))
    masks = sparsifier.masks
    for t in range(8):
        learn(model, optimizer, t)
    assert sparsifier.updates == 4
    assert all(torch.equal(m, sparsifier.masks[n]) for n, m in masks.items())


def test_defaults_are_those_of_the_paper():
    method = RigL(steps=1000)
    assert [t for t in range(1, 1001) if method.due(t)] == [100, 200, 300, 400, 500, 600, 700]
    assert method.drop.at(0.0) == 0.3
    assert method.drop.at(0.375) == pytest.approx(0.15)
    assert method.drop.at(0.75) == 0.0
    assert method.replaces_step
