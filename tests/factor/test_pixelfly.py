"""Pixelated butterfly: its pattern, its densities, and how near it comes."""

import pytest
import torch

from openwork.layouts.pixelfly import PixelflyLinear, butterfly, stretched


@pytest.mark.parametrize(
    ("grid", "factors", "density"), [(16, 2, 3 / 16), (16, 4, 5 / 16), (8, 3, 4 / 8), (32, 3, 4 / 32)]
)
def test_densities(grid, factors, density):
    pattern = butterfly(grid, factors)
    assert float(pattern.double().mean()) == density
    assert torch.equal(pattern, pattern.T)
    assert bool(pattern.diagonal().all())


def test_all_factors_are_the_neighbours_of_hamming_distance_one():
    pattern = butterfly(16, 4)
    for i in range(16):
        for j in range(16):
            assert bool(pattern[i, j]) == ((i ^ j).bit_count() <= 1)


def test_it_is_the_first_order_of_the_butterfly_product():
    g = torch.Generator().manual_seed(0)
    step, product, flat = 1e-4, torch.eye(8, dtype=torch.float64), torch.zeros(8, 8, dtype=torch.float64)
    for j in range(3):
        support = torch.zeros(8, 8).bool()
        support[torch.arange(8), torch.arange(8) ^ (1 << j)] = True
        factor = torch.where(support, torch.randn(8, 8, generator=g, dtype=torch.float64), 0)
        product = product @ (torch.eye(8, dtype=torch.float64) + step * factor)
        flat += factor
    assert torch.allclose((product - torch.eye(8)) / step, flat, atol=1e-2)
    assert bool(((flat != 0) <= butterfly(8, 3)).all())


def test_a_pattern_is_stretched_evenly():
    wide = stretched(butterfly(4, 1), 4, 8)
    assert torch.equal(wide, butterfly(4, 1).repeat_interleave(2, 1))
    uneven = stretched(butterfly(4, 1), 4, 7)
    assert bool((uneven.sum(1) >= 3).all())
    with pytest.raises(ValueError, match="does not shrink"):
        stretched(butterfly(4, 1), 3, 8)


def weight(rows=19, columns=30):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_nearest_holds_its_blocks_and_the_best_of_the_rest():
    w = weight()
    layer = PixelflyLinear.near(w, 3, 4, 1, 5)
    inside = layer.pattern.repeat_interleave(3, 0).repeat_interleave(3, 1)[:19, :30]
    rest = torch.where(inside, 0, w)
    left = float((layer.dense().detach() - w).square().sum())
    assert left == pytest.approx(float(torch.linalg.svdvals(rest)[5:].square().sum()))
    no_low_rank = float((PixelflyLinear.near(w, 3, 4, 1, 0).dense().detach() - w).square().sum())
    assert left < no_low_rank == pytest.approx(float(rest.square().sum()))


def test_the_gate_shares():
    layer = PixelflyLinear.near(weight(), 3, 4, 1, 5)
    half = layer.dense().detach()
    with torch.no_grad():
        layer.gate.fill_(40.0)
    inside = layer.pattern.repeat_interleave(3, 0).repeat_interleave(3, 1)[:19, :30]
    assert torch.allclose(layer.dense(), torch.where(inside, 2 * weight(), 0))
    with torch.no_grad():
        layer.gate.fill_(-40.0)
    assert torch.allclose(layer.dense() / 2 + torch.where(inside, weight(), 0), half)
    assert int(torch.linalg.matrix_rank(layer.dense())) == 5


def test_the_numbers_it_is_made_of():
    layer = PixelflyLinear.drawn((24, 36), 3, 8, 2, 4, torch.Generator().manual_seed(0))
    assert layer.numbers == int(layer.pattern.sum()) * 9 + 4 * (24 + 36) + 1
    x = torch.randn(4000, 36, generator=torch.Generator().manual_seed(2))
    assert float(layer.product(x).detach().var()) == pytest.approx(1.0, rel=0.35)  # both halves at variance 2


def test_values_that_do_not_fit():
    w = weight(8, 8)
    with pytest.raises(ValueError, match="pattern has 4 blocks"):
        PixelflyLinear(torch.zeros(3, 4, 4), torch.ones(2, 2).bool(), w[:, :1], w[:1], 8, 8)
    with pytest.raises(ValueError, match="too few"):
        PixelflyLinear(torch.zeros(4, 4, 4), torch.ones(2, 2).bool(), w[:, :1], w[:1], 9, 8)
    with pytest.raises(ValueError, match="use smaller blocks"):
        PixelflyLinear.near(w, 4, 4, 1, 1)
