"""DSnoT and bias correction: counts, signs, means, and what they cannot do."""

import dataclasses
import itertools
import math

import pytest
import torch
from hypothesis import given as drawn
from hypothesis import settings
from hypothesis import strategies as st
from torch import nn

import openwork as ow
from openwork.calibrate.bias_correct import BiasCorrect
from openwork.calibrate.dsnot import DSnoT
from openwork.calibrate.rescale import Rescale
from openwork.calibrate.wanda import Wanda
from openwork.calibrator import Solution
from tests.calibrate.layers import given, with_inputs


def pruned(seed, *, form="fan-in", sparsity=0.7, shift=0.0, **options):
    layer, x = given(seed, form=form, sparsity=sparsity, shift=shift, **options)
    solution = Wanda().solve(layer)
    return dataclasses.replace(
        layer, weight=solution.weight, mask=solution.mask, kept=int(solution.mask.sum())
    ), x


def mean_error(layer, weight, x):
    return x.mean(0) @ (layer.dense - weight).T


@settings(max_examples=25, deadline=None)
@drawn(st.integers(0, 999), st.sampled_from(["fan-in", "unstructured", "1:2", "3:11"]), st.integers(0, 60))
def test_swaps_keep_the_counts_and_the_weights_and_lower_the_mean_error(seed, form, swaps):
    layer, x = pruned(seed, form=form, shift=0.7)
    solution = DSnoT(swaps=swaps).solve(layer)
    assert torch.equal(solution.mask.sum(1), layer.mask.sum(1))
    if form not in ("fan-in", "unstructured"):
        assert layer.pattern.allows(solution.mask)
    assert torch.equal(solution.weight, layer.dense * solution.mask)
    before, after = mean_error(layer, layer.weight, x), mean_error(layer, solution.weight, x)
    assert (after.abs() <= before.abs() + 1e-9).all()
    assert (after * before >= -1e-9).all()
    assert (~torch.eq(solution.mask, layer.mask)).sum(1).max() <= 2 * swaps


def test_more_swaps_never_hurt_the_mean():
    layer, x = pruned(3, shift=0.7, out=40, inputs=60)
    errors = [mean_error(layer, DSnoT(swaps=n).solve(layer).weight, x).abs() for n in (0, 1, 2, 5, 50)]
    assert all((later <= earlier + 1e-9).all() for earlier, later in itertools.pairwise(errors))
    assert errors[-1].sum() < 0.5 * errors[0].sum()


def test_the_first_swap_is_the_formula():
    layer, x = pruned(7, shift=0.7)
    solution = DSnoT(swaps=1).solve(layer)
    mu, variance, norm = x.mean(0), x.var(0, correction=0), x.norm(dim=0)
    for r in range(len(layer.mask)):
        c = layer.dense[r] * mu
        e = c[~layer.mask[r]].sum()
        gain = torch.where(~layer.mask[r], e.sign() * c / variance, -math.inf)
        drop = torch.where(layer.mask[r] & (e.sign() * c < 0), layer.dense[r].abs() * norm, math.inf)
        g, p = int(gain.argmax()), int(drop.argmin())
        after = e - c[g] + c[p]
        happens = gain[g] > 0 and drop[p] < math.inf and after.sign() == e.sign()
        expected = layer.mask[r].clone()
        if happens:
            expected[g], expected[p] = True, False
        assert torch.equal(solution.mask[r], expected)


def test_nothing_is_swapped_where_the_mean_is_zero_or_all_is_well():
    layer, _ = pruned(1)
    layer.statistics.mean.zero_()
    assert torch.equal(DSnoT().solve(layer).mask, layer.mask)
    layer, _ = pruned(1, shift=0.7)
    assert torch.equal(DSnoT(tolerance=math.inf).solve(layer).mask, layer.mask)
    assert not torch.equal(DSnoT().solve(layer).mask, layer.mask)


def test_a_constant_input_has_no_variance_and_does_no_harm():
    layer, _x = pruned(2, shift=0.7, dead=3)
    solution = DSnoT().solve(layer)
    assert torch.equal(solution.mask.sum(1), layer.mask.sum(1))
    assert not (solution.mask & ~layer.mask)[:, :3].any()


@pytest.mark.parametrize("seed", range(3))
def test_the_published_rule_over_corrects_and_the_bias_does_it_for_nothing(seed):
    """A layer 64 to 48 at 70 %: swaps help where inputs have a mean, without the rule on signs they harm, and
    correcting the bias is better than either.
    """
    errors = {}
    for mean in (0.0, 2.0):
        g = torch.Generator().manual_seed(seed)
        layer, _ = given(seed, out=48, inputs=64, form="fan-in", sparsity=0.7, bias=torch.zeros(48).double())
        x = torch.randn(512, 64, generator=g).double() + mean * torch.rand(64, generator=g).double()
        layer = with_inputs(layer, x * torch.logspace(-0.5, 0.5, 64).double())
        solution = Wanda().solve(layer)
        layer = dataclasses.replace(layer, weight=solution.weight, mask=solution.mask)
        corrected = BiasCorrect().solve(layer)
        errors[mean] = (
            layer.error(layer.weight),
            layer.error(DSnoT().solve(layer).weight),
            layer.error(DSnoT(same_sign=False).solve(layer).weight),
            layer.error(corrected.weight, corrected.bias),
        )
    wanda, swapped, free, corrected = errors[2.0]
    assert corrected < swapped < 0.75 * wanda
    assert free > 2 * wanda
    assert errors[0.0][1] > errors[0.0][0]


@settings(max_examples=15)
@drawn(st.integers(0, 999), st.booleans())
def test_the_mean_output_is_exactly_the_dense_one(seed, biased):
    bias = (
        torch.randn(13, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        if biased
        else None
    )
    layer, x = pruned(seed, shift=1.0, bias=bias)
    solution = BiasCorrect(add=True).solve(layer)
    dense = x @ layer.dense.T + (0 if bias is None else bias)
    torch.testing.assert_close((x @ solution.weight.T + solution.bias).mean(0), dense.mean(0))
    assert torch.equal(solution.weight, layer.weight)


def test_a_layer_without_a_bias_is_left_alone_unless_asked():
    data = [torch.randn(20, 6) + 1]
    for add in (False, True):
        model = nn.Sequential(nn.Linear(6, 4, bias=False))
        ow.sparsify_(model, [ow.Wanda(sparsity=0.5), BiasCorrect(add=add)], data=data)
        assert (model[0].bias is not None) == add
    experts = nn.Conv2d(4, 4, 1, groups=2, bias=False)
    with pytest.raises(ValueError, match="no place for a bias"):
        ow.sparsify_(experts, BiasCorrect(add=True), data=[torch.randn(2, 4, 3, 3)])
    assert experts.bias is None


@settings(max_examples=20, deadline=None)
@drawn(st.integers(0, 999), st.booleans(), st.sampled_from(["fan-in", "unstructured", "1:2"]))
def test_rescaling_is_a_line_fitted_to_the_outputs(seed, biased, form):
    bias = torch.linspace(-1, 1, 13, dtype=torch.float64) if biased else None
    layer, x = pruned(seed, shift=0.9, bias=bias, form=form)
    solution = Rescale().solve(layer)
    assert torch.equal(solution.weight != 0, layer.weight != 0)
    dense = x @ layer.dense.T + (0 if bias is None else bias)
    y = x @ layer.weight.T
    for r in range(len(y[0])):
        if not bool(layer.mask[r].any()):
            continue
        points = torch.stack([y[:, r], *([torch.ones(len(y)).double()] if biased else [])], 1)
        line = torch.linalg.lstsq(points, dense[:, r]).solution
        torch.testing.assert_close(solution.weight[r], line[0] * layer.weight[r])
        if biased:
            torch.testing.assert_close(solution.bias[r], line[1])
    after, before = layer.error(solution.weight, solution.bias), layer.error(layer.weight)
    assert after <= before * (1 + 1e-9)
    corrected = BiasCorrect().solve(layer)
    assert not biased or after <= layer.error(corrected.weight, corrected.bias) * (1 + 1e-9)


def test_rescaling_leaves_outputs_alone_that_do_not_vary():
    layer, x = pruned(4, bias=torch.zeros(13).double())
    layer = with_inputs(layer, torch.ones_like(x))
    solution = Rescale().solve(layer)
    assert torch.equal(solution.weight, layer.weight)
    torch.testing.assert_close(solution.bias, layer.dense.sum(1) - layer.weight.sum(1))


def test_before_a_norm_the_mean_alone_does_harm_and_the_scale_does_good():
    """Every input comes twice and one of the two is dropped, so each output is exactly half of what it was, its mean as well.
    A norm makes up for that, unless the mean alone is put right.
    """
    half, x = given(0, out=48, inputs=32, tokens=300, shift=2.0)
    twice = torch.cat([half.dense, half.dense], 1)
    mask = torch.cat([torch.ones_like(half.mask), torch.zeros_like(half.mask)], 1)
    layer = with_inputs(
        half, torch.cat([x, x], 1), dense=twice, weight=twice * mask, mask=mask, shape=tuple(twice.shape),
        bias=torch.zeros(48).double(), dense_bias=torch.zeros(48).double(),
    )  # fmt: skip
    x = torch.cat([x, x], 1)
    wanted = nn.functional.layer_norm(x @ layer.dense.T, (48,))

    def lost(solution):
        y = x @ solution.weight.T + (0 if solution.bias is None else solution.bias)
        return float((nn.functional.layer_norm(y, (48,)) - wanted).square().mean())

    assert lost(Solution(layer.weight)) < 1e-6
    assert lost(BiasCorrect().solve(layer)) > 0.05
    assert lost(Rescale().solve(layer)) < 1e-12
    corrected = BiasCorrect().solve(layer)
    assert layer.error(corrected.weight, corrected.bias) < layer.error(layer.weight)
