"""Floats of four bits: searched formats and biases, and inputs shifted by powers of two."""

import pytest
import torch
from torch import nn

from openwork.calibrate.fp4 import FP4, best_weights, shifted_scale
from openwork.calibrate.rtn import RTN
from openwork.layouts.rounded import RoundedInputLinear, rounded_inputs
from openwork.quantization import FloatGrid, nearest
from tests.calibrate.problems import inputs, layer, output_error


def test_the_search_looks_at_the_outputs() -> None:
    for seed in range(3):
        held, x = layer(13, 29, seed=seed)
        found = output_error(held, FP4().solve(held).weight, x)
        for e, m in ((2, 1), (1, 2), (3, 0)):
            fixed = output_error(held, FP4(format=f"e{e}m{m}").solve(held).weight, x)
            plain = output_error(held, RTN(grid=FloatGrid(e, m, "max"), group="row").solve(held).weight, x)
            assert found <= fixed * (1 + 1e-6)
            assert fixed <= plain * (1 + 1e-6)
        assert found < 0.9 * plain


def test_each_row_has_the_best_of_all_the_biases_tried() -> None:
    held, x = layer(5, 13, seed=4)
    grid = FloatGrid(2, 1)
    gram = x.T @ x
    q = best_weights(held.weight, [grid], gram, held.weight @ gram)
    start = grid.holding(held.weight.abs().amax(1))
    errors = torch.stack(
        [
            (x @ (grid.round(held.weight, type(at)(at.scale[:, None], at.zero[:, None])) - held.weight).T)
            .square()
            .sum(0)
            for at in grid.candidates(start)
        ]
    )
    found = (x @ (q.dense().double() - held.weight).T).square().sum(0)
    assert torch.allclose(found, errors.amin(0), rtol=1e-5)


@pytest.mark.parametrize("inputs_too", [False, True])
def test_pruned_weights_stay_zero(inputs_too: bool) -> None:
    held, _ = layer(9, 14, sparsity=0.5)
    weight = FP4(inputs=inputs_too).solve(held).weight
    assert bool((weight[~held.mask] == 0).all())


def test_shifts_are_whole_powers_that_fold_exactly() -> None:
    generator = torch.Generator().manual_seed(0)
    largest = torch.randn(20, generator=generator, dtype=torch.float64).mul(2).exp()
    largest[3] = 0
    grid = FloatGrid(2, 1)
    scale, shift = shifted_scale(grid, largest)
    assert int(shift.min()) == 0
    assert int(shift.max()) <= 2**grid.exponent - 1
    assert shift[largest.argmax()] == 0
    assert shift[3] == 0
    assert float(scale) == pytest.approx(float(largest.max() / grid.top))
    biases = grid.bias_of(grid.holding(largest))
    near = (shift > 0) & (shift < 2**grid.exponent - 1)
    assert bool(((biases - (grid.bias_of(scale) + shift))[near].abs() <= 1).all())
    x, w = torch.randn(7, 20, generator=generator), torch.randn(5, 20, generator=generator)
    assert torch.equal((x * torch.exp2(shift)) / torch.exp2(shift), x)
    folded = (x * torch.exp2(shift).float()).double() @ (w / torch.exp2(shift).float()).double().T
    assert torch.allclose(folded, x.double() @ w.double().T, rtol=1e-12)


def test_rounding_inputs_in_the_layer_is_what_the_search_assumed() -> None:
    held, x = layer(9, 14, bias=True, tokens=60)
    solution = FP4(inputs=True, format="e2m1").solve(held)
    linear = nn.Linear(14, 9)
    with torch.no_grad():
        linear.weight.copy_(solution.weight)
    assert solution.module is not None
    module = solution.module(linear)
    assert isinstance(module, RoundedInputLinear)
    read = rounded_inputs(x.float(), module.grid, module.input_scale, module.input_shift)
    levels = (read.double() / module.input_scale.double()).abs().unique()
    assert len(levels) <= 8
    assert torch.allclose(module(x.float()), read @ linear.weight.T + linear.bias, atol=1e-5)
    assert solution.effective is not None
    unit = torch.exp2(module.input_shift.double())
    assert torch.allclose(solution.effective, solution.weight * unit)
    y, target = module(x.float()).detach().double() - linear.bias.detach(), x @ held.dense.T
    assert float((y - target).square().sum()) < 0.2 * float(target.square().sum())
    with pytest.raises(ValueError, match="Bilinear"):
        solution.module(nn.Bilinear(1, 1, 1))


def test_the_shift_helps_where_channels_differ() -> None:
    x = inputs(80, 14, 3) * torch.logspace(-1, 1, 14, dtype=torch.float64)
    held, _ = layer(9, x=x)
    grid = FloatGrid(2, 1)
    scale, shift = shifted_scale(grid, x.abs().amax(0))
    error = []
    for r in (shift, shift * 0):
        unit = torch.exp2(r.double())
        read = rounded_inputs(x, grid, scale, r)
        error.append(float(((read / unit) @ held.dense.T - x @ held.dense.T).square().sum()))
    assert error[0] < 0.9 * error[1]


def test_formats_that_do_not_exist_are_refused() -> None:
    with pytest.raises(ValueError, match="e2m1"):
        FP4(format="e4m3")
    assert [g.name for g in FP4(bits=8).grids()] == ["E5M2", "E4M3", "E3M4", "E2M5", "E1M6"]
    assert nearest(torch.zeros(2, 3), FloatGrid(2, 1)).dense().count_nonzero() == 0
