"""Monarch matrices: the formula, the closed-form projection, the Fourier transform."""

import cmath

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from openwork.factorization import truncated
from openwork.layouts.monarch import MonarchLinear, sizes
from openwork.tasks.digits import digits
from openwork.tasks.mlp import mlp
from openwork.tasks.training import fit


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_formula_and_the_number_of_parameters():
    m = 4
    layer = MonarchLinear(random(m, m, m), random(m, m, m, seed=1), m * m, m * m)
    dense = layer.dense().view(m, m, m, m)  # [s, l, k, p]
    # block k deals its hidden unit q to block l = q, as number k there
    expected = torch.einsum("lsk,klp->slkp", layer.second, layer.first)
    assert torch.allclose(dense, expected)
    assert layer.numbers == 2 * m * m * m


@settings(max_examples=40, deadline=None)
@given(
    blocks=st.integers(1, 5), inputs=st.integers(5, 23), outputs=st.integers(5, 23), seed=st.integers(0, 50)
)
def test_the_projection_of_a_monarch_matrix_is_itself(blocks, inputs, outputs, seed):
    g = torch.Generator().manual_seed(seed)
    layer = MonarchLinear.drawn((outputs, inputs), blocks, g).double()
    again = MonarchLinear.nearest(layer.dense().detach(), blocks)
    assert torch.allclose(again.dense(), layer.dense(), atol=1e-9)


def test_what_is_left_are_the_other_singular_values():
    m = 5
    weight = random(m * m, m * m)
    left = float((MonarchLinear.nearest(weight, m).dense().detach() - weight).square().sum())
    slices = weight.view(m, m, m, m).permute(1, 2, 0, 3)
    sigma = torch.linalg.svdvals(slices)
    assert left == pytest.approx(float(sigma[..., 1:].square().sum()))


def test_no_step_from_the_projection_comes_nearer():
    weight = random(12, 15)
    layer = MonarchLinear.nearest(weight, 3)
    (layer.dense() - weight).square().sum().backward()
    assert all(float(p.grad.abs().max()) < 1e-9 for p in (layer.first, layer.second))


def test_the_fourier_transform_is_a_monarch_matrix():
    m = 4
    n = m * m
    dft = torch.tensor([[cmath.exp(-2j * cmath.pi * i * j / n) for j in range(n)] for i in range(n)])
    # inputs in the order of the transposed m x m matrix
    order = torch.arange(n).view(m, m).T.flatten()
    for part in (dft.real, dft.imag):
        # the complex slices have rank 1; their real and imaginary parts have rank 2 at most
        slices = part.double()[:, order].view(m, m, m, m).permute(1, 2, 0, 3)
        assert float(torch.linalg.svdvals(slices)[..., 2:].abs().max()) < 1e-9
    slices = dft[:, order].view(m, m, m, m).permute(1, 2, 0, 3)
    assert float(torch.linalg.svdvals(slices)[..., 1:].abs().max()) < 1e-6


@given(blocks=st.integers(1, 6), inputs=st.integers(6, 40), outputs=st.integers(6, 40))
def test_sizes_cover_the_weight(blocks, inputs, outputs):
    q, p, s = sizes(outputs, inputs, blocks)
    assert blocks * p >= inputs > blocks * (p - 1)
    assert blocks * s >= outputs > blocks * (s - 1)
    assert q == min(p, s)


def test_blocks_that_do_not_fit():
    with pytest.raises(ValueError, match="do not follow"):
        MonarchLinear(random(2, 3, 4), random(2, 3, 4), 8, 6)
    with pytest.raises(ValueError, match="too small"):
        MonarchLinear(random(2, 3, 4), random(2, 3, 3), 9, 6)
    with pytest.raises(ValueError, match="7 blocks"):
        sizes(6, 9, 7)


def test_where_it_is_nearer_than_low_rank_of_as_many_numbers():
    """Relative errors for 64 x 64 in 1024 numbers. Fast transforms and permutations are far from any low rank; smooth kernels and
    the weights of a trained perceptron are not, and there low rank wins."""
    n, blocks = 64, 8
    i = torch.arange(n)
    hadamard = torch.ones(1, 1, dtype=torch.float64)
    while len(hadamard) < n:
        hadamard = torch.kron(torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64), hadamard)
    model = mlp([64, 64, 64, 10], seed=5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)
    fit(model, digits(), optimizer=optimizer, steps=400, seed=5)
    weights = {
        "random": random(n, n),
        "Hadamard": hadamard,
        "permutation": torch.eye(n, dtype=torch.float64)[
            torch.randperm(n, generator=torch.Generator().manual_seed(1))
        ],
        "smooth Toeplitz": torch.exp(-(i[:, None] - i).abs().double() / 6),
        "trained": model.fc2.weight.detach().double(),
    }
    found = {}
    for name, weight in weights.items():
        layer = MonarchLinear.nearest(weight, blocks)
        dense = layer.dense().detach()
        factors = truncated(weight, layer.numbers // (2 * n))
        near = [float((made - weight).norm() / weight.norm()) for made in (dense, factors.product())]
        found[name] = pytest.approx(near, abs=0.02)
    assert found == {
        "random": [0.786, 0.793],
        "Hadamard": [0.0, 0.935],
        "permutation": [0.6, 0.935],
        "smooth Toeplitz": [0.264, 0.181],
        "trained": [0.759, 0.709],
    }
