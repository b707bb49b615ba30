"""New connections start with the variance their unit needs."""

import math

import pytest
import torch

from openwork.initialization import initial_values


def sparse(shape, density, seed=0):
    g = torch.Generator().manual_seed(seed)
    mask = torch.rand(shape, generator=g) < density
    positions = mask.flatten().nonzero().flatten()
    return mask, positions // math.prod(shape[1:]), g


@pytest.mark.parametrize("shape", [(30, 40), (7, 5, 3, 3)])
def test_rescale_makes_up_for_the_inputs_that_are_gone(shape):
    mask, units, g = sparse(shape, 0.2)
    weight = torch.randn(shape, generator=g, dtype=torch.float64)
    before = weight.clone()
    values = initial_values(weight[mask], units, shape, "rescale", g)
    for unit in range(shape[0]):
        inputs = int(mask[unit].sum())
        factor = math.sqrt(math.prod(shape[1:]) / inputs) if inputs else 0.0
        torch.testing.assert_close(values[units == unit], weight[unit][mask[unit]] * factor)
    assert torch.equal(weight, before)


def test_rescale_of_a_dense_weight_is_the_weight():
    weight = torch.randn(12, generator=torch.Generator().manual_seed(0))
    units = torch.arange(12) // 4
    assert torch.equal(initial_values(weight, units, (3, 4), "rescale", torch.Generator()), weight)


def test_kaiming_has_the_same_variance_whatever_the_fan_in():
    shape = (400, 300)
    rows = torch.arange(shape[0]).unsqueeze(1)
    mask = torch.arange(shape[1]).unsqueeze(0) < 1 + rows * 299 // 399  # fan-in from 1 to 300
    units = mask.nonzero()[:, 0]
    g = torch.Generator().manual_seed(1)
    values = initial_values(torch.zeros(units.numel(), dtype=torch.float64), units, shape, "kaiming", g)
    weight = torch.zeros(shape, dtype=torch.float64)
    weight[mask] = values
    x = torch.randn(2000, shape[1], generator=g, dtype=torch.float64)
    variance = (x @ weight.T).var(0)  # of a unit, given its weights: sum of squares
    assert variance.mean().item() == pytest.approx(2.0, rel=0.05)
    halves = variance[:200].mean() / variance[200:].mean()
    assert halves.item() == pytest.approx(1.0, abs=0.15)


def test_keep_is_a_copy():
    weight = torch.tensor([1.0, 0.0])
    values = initial_values(weight, torch.tensor([0, 1]), (2, 3), "keep", torch.Generator())
    assert torch.equal(values, weight)
    assert values.data_ptr() != weight.data_ptr()


@pytest.mark.parametrize("init", ["rescale", "kaiming", "keep"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_dtype_is_kept_and_nothing_is_fine(init, dtype):
    values = initial_values(
        torch.ones(3, dtype=dtype), torch.tensor([0, 2, 2]), (4, 5), init, torch.Generator()
    )
    assert values.dtype == dtype
    none = torch.empty(0, dtype=torch.int64)
    assert initial_values(torch.empty(0), none, (4, 5), init, torch.Generator()).shape == (0,)


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="choose rescale, kaiming or keep"):
        initial_values(torch.ones(1), torch.zeros(1, dtype=torch.int64), (1, 1), "xavier", torch.Generator())
