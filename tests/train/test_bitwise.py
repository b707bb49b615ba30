"""Bitwise training: the grid of values, the gradient of every bit, and the zeros that come by themselves."""

import pytest
import torch
from torch import nn

from openwork import Bitwise, restructure_, to_dense_
from openwork.layouts.bits import BitLinear


def layer(bits, shape=(40, 50), **options):
    return BitLinear.drawn(shape, bits, torch.Generator().manual_seed(0), **options)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_values_are_on_a_symmetric_grid(bits):
    made = layer(bits, (300, 300))
    k = bits - 1
    integers = made.integers()
    assert torch.equal(made.dense(), integers.to(made.latents.dtype) * made.scale)
    assert (int(integers.min()), int(integers.max())) == (1 - 2**k, 2**k - 1)
    assert len(integers.unique()) == 2 ** (k + 1) - 1
    assert float((integers == 0).double().mean()) == pytest.approx(2.0**-k, rel=0.1)
    assert float(made.dense().detach().std()) == pytest.approx((2 / 300) ** 0.5, rel=0.02)


def test_the_gradient_of_every_bit():
    made = layer(4, (3, 5)).double()
    g = torch.randn(3, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    made.dense().backward(g)
    c, magnitude = float(made.scale), made.integers().abs().double()
    sign = torch.where(made.latents[0] > 0, -1.0, 1.0)
    assert torch.allclose(made.latents.grad[0], -2 * c * magnitude / 4 * g)
    for i in range(3):
        assert torch.allclose(made.latents.grad[1 + i], c * sign * 2.0**i / 4 * g)


def test_the_sign_of_a_zero_has_no_gradient():
    made = layer(2)
    made.dense().sum().backward()
    zero = made.integers() == 0
    assert bool((made.latents.grad[0][zero] == 0).all())
    assert bool((made.latents.grad[0][~zero] != 0).all())


def test_frozen_bits_keep_their_values():
    made = layer(5, trained=3)
    before = made.latents.detach().clone()
    assert made.frozen.tolist() == [False, True, True, False, False]
    optimizer = torch.optim.Adam(made.parameters(), lr=0.1)
    made(torch.ones(2, 50)).square().sum().backward()
    optimizer.step()
    assert torch.equal(made.latents[1:3], before[1:3])
    assert not torch.equal(made.latents[3:], before[3:])


def trained(bits, trained=None, steps=300):
    from openwork.tasks import get
    from openwork.tasks.mlp import mlp
    from openwork.tasks.training import fit

    task = get("digits")
    model = mlp([64, 96, 48, 10], seed=5)
    restructure_(model, Bitwise(bits=bits, trained=trained))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
    run = fit(model, task, optimizer=optimizer, steps=steps, seed=5)
    zeros = sum(int((m.integers() == 0).sum()) for m in model if isinstance(m, BitLinear))
    total = sum(m.latents[0].numel() for m in model if isinstance(m, BitLinear))
    return run.validation.accuracy, zeros / total, model


def test_ternary_digits():
    pytest.importorskip("sklearn")
    accuracy, sparsity, model = trained(2)
    assert accuracy == pytest.approx(TERNARY[0], abs=0.03)
    assert sparsity == pytest.approx(TERNARY[1], abs=0.03)
    found = [(m.integers() == 0) for m in model if isinstance(m, BitLinear)]
    to_dense_(model)
    for zero, m in zip(found, (m for m in model if isinstance(m, nn.Linear)), strict=True):
        assert torch.equal(m.weight == 0, zero)


def test_only_the_leading_bits_matter_and_zeros_come_by_themselves():
    pytest.importorskip("sklearn")
    accuracy, sparsity, _ = trained(8)
    assert trained(8, trained=3)[0] == pytest.approx(accuracy, abs=0.04)
    assert sparsity > 0.2 > 20 * 2**-7


TERNARY = (0.967, 0.507)
