"""A low-rank term beside a compressed weight: against the optimum, and where it helps."""

import dataclasses

import pytest
import torch
from torch import nn

from openwork.calibrate.lorc import LoRC
from openwork.calibrate.rtn import RTN
from openwork.calibrator.layer import Layer
from openwork.layouts.low_rank import CompensatedLinear
from tests.calibrate.problems import layer, output_error


def applied(stage: LoRC, held: Layer) -> torch.Tensor:
    effective = stage.solve(held).effective
    assert effective is not None
    return effective


@pytest.mark.parametrize("rank", [0, 1, 4, 11])
def test_the_error_is_that_of_the_discarded_singular_values(rank: int) -> None:
    held, _ = layer(sparsity=0.5, seed=2)
    left = held.dense - applied(LoRC(rank=rank, weighted=False, bits=None), held)
    tail = torch.linalg.svdvals(held.dense - held.weight)[rank:].square().sum()
    assert float(left.square().sum()) == pytest.approx(float(tail), rel=1e-9, abs=1e-20)


def test_rank_zero_changes_nothing_and_full_rank_gives_the_weight_back() -> None:
    held, _ = layer(sparsity=0.5)
    assert torch.equal(applied(LoRC(rank=0), held), held.weight)
    assert torch.allclose(applied(LoRC(rank=99, bits=None), held), held.dense, atol=1e-6)
    assert torch.equal(LoRC(rank=99).solve(held).weight, held.weight)


def test_looking_at_the_inputs_never_errs_more_in_the_outputs() -> None:
    for seed in range(4):
        held, x = layer(20, 31, seed=seed, sparsity=0.6)
        plain, weighted = (
            output_error(held, applied(LoRC(rank=4, weighted=w, bits=None, damping=1e-12), held), x)
            for w in (False, True)
        )
        best = torch.linalg.svdvals(x @ (held.dense - held.weight).T)[4:].square().sum()
        assert weighted == pytest.approx(float(best), rel=1e-6)
        assert weighted < plain


def test_eight_bits_of_the_factors_cost_next_to_nothing() -> None:
    held, x = layer(20, 31, sparsity=0.6)
    exact, rounded = (output_error(held, applied(LoRC(rank=4, bits=b), held), x) for b in (None, 8))
    assert exact < rounded < 1.02 * exact


def test_it_helps_where_the_residual_decays_and_less_where_it_is_flat() -> None:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    stage, left = LoRC(rank=4, bits=None), {}
    x = normal(300, 48)
    for kind, weight in (("decaying", normal(40, 3) @ normal(3, 48)), ("flat", normal(40, 48))):
        held, _ = layer(weight=weight, x=x, sparsity=0.6 if kind == "decaying" else 0.0)
        if kind == "flat":
            held = dataclasses.replace(held, weight=RTN(group=8).solve(held).weight)
        left[kind] = output_error(held, applied(stage, held), x) / output_error(held, held.weight, x)
    assert left["decaying"] < 0.45
    assert left["flat"] > 0.6


def test_the_layer_computes_both_terms_and_keeps_its_zeros() -> None:
    held, x = layer(sparsity=0.5, bias=True)
    solution = LoRC(rank=3).solve(held)
    linear = nn.Linear(23, 11, dtype=torch.float64)
    with torch.no_grad():
        linear.weight.copy_(solution.weight)
    assert solution.module is not None
    module = solution.module(linear)
    assert isinstance(module, CompensatedLinear)
    assert solution.effective is not None
    assert torch.allclose(module(x), x @ solution.effective.T + linear.bias)
    assert torch.equal(module.weight, held.weight)
    assert torch.allclose(module.merged()(x), module(x))
    with pytest.raises(ValueError, match="Conv2d"):
        solution.module(nn.Conv2d(1, 1, 1))
