"""BDWP prunes forward along inputs and backward along outputs, and the weights get the dense gradient."""

import dataclasses

import pytest
import torch
from torch import nn
from torch.nn.functional import cosine_similarity

from openwork import BDWP, DNW, NM, SRSTE, attach
from openwork.testing import check_method
from tests.train.runs import Run, net

METHOD = BDWP(pattern="2:4")


def model():
    return net((12, 32, 16, 8))


@pytest.mark.parametrize(
    "options", [{}, {"pattern": "1:3", "every": 1}, {"backward": "same"}, {"decay": 0.01}]
)
def test_conformance(options):
    check_method(BDWP, **options)


def strongest_outputs(theta):
    ranks = theta.abs().unflatten(0, (-1, 4)).argsort(1, descending=True).argsort(1).flatten(0, 1)
    return torch.where(ranks < 2, theta, 0)


def test_the_three_products():
    run = Run(METHOD, nn.Sequential(nn.Linear(12, 16).double()))
    layer, c = run.model[0], run.sparsifier.connections["0.weight"]
    g = torch.Generator().manual_seed(4)
    x = torch.randn(7, 12, generator=g, dtype=torch.float64, requires_grad=True)
    dy = torch.randn(7, 16, generator=g, dtype=torch.float64)
    y = run.model(x)
    y.backward(dy)
    torch.testing.assert_close(y, x @ torch.where(c.mask, c.latent, 0).T + layer.bias)
    torch.testing.assert_close(x.grad, dy @ strongest_outputs(c.latent))
    torch.testing.assert_close(layer.weight.grad, dy.T @ x.detach())
    torch.testing.assert_close(layer.bias.grad, dy.sum(0))
    exact = dy @ c.latent
    assert 0.6 < cosine_similarity(x.grad.flatten(), exact.flatten(), dim=0) < 0.999
    assert not torch.allclose(x.grad, dy @ layer.weight)


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("groups", [1, 2])
def test_convolutions(batched, groups):
    conv = nn.Conv2d(8, 16, 3, stride=2, padding=1, dilation=1, groups=groups).double()
    optimizer = torch.optim.SGD(conv.parameters(), lr=0.1)
    sparsifier = attach(nn.Sequential(conv), optimizer, METHOD)
    (c,) = sparsifier.connections.values()
    g = torch.Generator().manual_seed(4)
    x = torch.randn(*([3] if batched else []), 8, 7, 5, generator=g, dtype=torch.float64, requires_grad=True)
    y = conv(x)
    dy = torch.randn(y.shape, generator=g, dtype=torch.float64)
    (dx,) = torch.autograd.grad(y, x, dy)
    other = torch.nn.functional.conv2d(x, strongest_outputs(c.latent), None, 2, 1, 1, groups)
    torch.testing.assert_close(dx, torch.autograd.grad(other, x, dy)[0])
    assert not torch.equal(other, y)
    sparsifier.detach()
    (plain,) = torch.autograd.grad(conv(x), x, dy)
    assert not torch.allclose(plain, dx)


def test_the_network_learns_though_the_gradient_is_of_no_function():
    x = torch.randn(64, 12, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    target = torch.tanh(x[:, :8] * x[:, 4:12])
    trained = model()
    optimizer = torch.optim.SGD(trained.parameters(), lr=0.2, momentum=0.9)
    attach(trained, optimizer, METHOD)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = (trained(x) - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]
    assert all(NM(2, 4).allows(layer.weight != 0) for layer in trained[::2])


def test_its_limits():
    same, everything = METHOD.limits()
    assert type(same[1]) is SRSTE
    assert type(everything[1]) is DNW
    for setting, simpler in (same, everything):
        expected = Run(simpler, model()).step(5).losses
        assert Run(setting, model()).step(5).losses == pytest.approx(expected, rel=1e-12)
    assert Run(METHOD, model()).step(5).losses != Run(same[0], model()).step(5).losses


def test_where_outputs_do_not_divide_both_directions_share_the_mask():
    a = Run(METHOD, net((12, 6, 5))).step(4)
    assert a.sparsifier.handles[2:] == []
    assert a.losses == Run(SRSTE(pattern="2:4", decay=0.0), net((12, 6, 5))).step(4).losses


def test_what_it_does_not_cover_is_refused_before_anything_changes():
    layer = nn.Conv1d(4, 4, 3, padding=1, padding_mode="circular")
    before, optimizer = layer.weight.detach().clone(), torch.optim.SGD(layer.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"0\.weight belongs to Conv1d.*circular.*backward='same'"):
        attach(nn.Sequential(layer), optimizer, METHOD)
    assert torch.equal(layer.weight, before)
    attach(nn.Sequential(layer), optimizer, dataclasses.replace(METHOD, backward="same"))
    with pytest.raises(ValueError, match="n of every m"):
        BDWP(pattern="unstructured")
