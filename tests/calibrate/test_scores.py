"""Wanda, RIA and FLAP: what their scores do not depend on, and what they reduce to."""

import dataclasses

import pytest
import torch
from hypothesis import given as drawn
from hypothesis import settings
from hypothesis import strategies as st

from openwork.calibrate.flap import FLAP
from openwork.calibrate.ria import RIA, relative_importance
from openwork.calibrate.sparsegpt import SparseGPT
from openwork.calibrate.wanda import Wanda, cumulative_shares, wanda_scores
from tests.calibrate.layers import given, with_inputs


@settings(max_examples=20)
@drawn(st.integers(0, 99), st.sampled_from(["fan-in", "unstructured", "2:11", "1:2"]), st.floats(0, 0.95))
def test_wanda_keeps_the_largest_products_and_no_weight_changes(seed, form, sparsity):
    layer, x = given(seed, form=form, sparsity=sparsity)
    solution = Wanda().solve(layer)
    assert layer.pattern.allows(solution.mask)
    assert torch.equal(solution.weight, layer.dense * solution.mask)
    torch.testing.assert_close(wanda_scores(layer), layer.dense.abs() * x.norm(dim=0))
    if form == "fan-in":
        assert (solution.mask.sum(1) == int(layer.kept // 13)).all()


def test_wanda_does_not_depend_on_the_scale_of_the_inputs_nor_on_where_a_factor_is():
    layer, x = given(3, form="fan-in")
    s = torch.rand(22, dtype=torch.float64) + 0.5
    mask = Wanda().solve(layer).mask
    assert torch.equal(mask, Wanda().solve(with_inputs(layer, 7 * x)).mask)
    folded = with_inputs(layer, x / s, dense=layer.dense * s, weight=layer.weight * s)
    assert torch.equal(mask, Wanda().solve(folded).mask)


def test_with_equal_norms_wanda_is_magnitude_in_each_row():
    layer, x = given(4, form="fan-in")
    mask = Wanda().solve(with_inputs(layer, x / x.norm(dim=0))).mask
    assert torch.equal(mask, layer.choose(layer.dense.abs()))


def test_wanda_squared_is_the_saliency_of_sparsegpt_for_a_diagonal_h():
    layer, x = given(5)
    q = torch.linalg.qr(x).Q * torch.linspace(1, 3, 22, dtype=torch.float64)
    layer = with_inputs(layer, q)
    u = layer.inverse_factor(0.0)
    torch.testing.assert_close((layer.dense / u.diagonal()).square(), wanda_scores(layer).square())
    swept = SparseGPT(damping=0.0).solve(layer)
    torch.testing.assert_close(swept.weight, layer.dense * swept.mask, atol=1e-9, rtol=1e-7)
    assert torch.equal(swept.mask, layer.choose(wanda_scores(layer)))


def test_unequal_inputs_make_the_difference_to_magnitude():
    """64 to 48, half of it, inputs of unequal scale."""
    layer, _ = given(0, out=48, inputs=64, tokens=512, form="fan-in")
    errors = {
        "wanda": layer.error(Wanda().solve(layer).weight),
        "magnitude": layer.error(layer.dense * layer.choose(layer.dense.abs())),
    }
    assert errors["magnitude"] > 2 * errors["wanda"]


def test_relative_importance_is_the_formula_and_starves_nobody():
    w = torch.tensor([[1.0, -2.0, 0.0], [3.0, 0.0, 0.0]])
    expected = torch.tensor([[1 / 4 + 1 / 3, 2 / 2 + 2 / 3, 0], [3 / 4 + 3 / 3, 0, 0]])
    torch.testing.assert_close(relative_importance(w), expected)
    equal = relative_importance(torch.full((4, 6), -0.3))
    torch.testing.assert_close(equal, torch.full((4, 6), 1 / 4 + 1 / 6))
    layer, x = given(6)
    torch.testing.assert_close(
        RIA().solve(layer).weight,
        layer.dense * layer.choose(relative_importance(layer.dense) * x.norm(dim=0).sqrt()),
    )


def test_ria_leaves_fewer_empty_columns_than_one_threshold_on_wanda():
    layer, _ = given(1, out=40, inputs=60, sparsity=0.85, form="unstructured")
    empty = {cls: int((~cls().solve(layer).mask.any(0)).sum()) for cls in (Wanda, RIA)}
    assert empty[RIA] < empty[Wanda]


def test_flap_removes_constant_inputs_with_no_error_at_all():
    layer, x = given(2, form="groups 1", sparsity=3 / 22, bias=torch.zeros(13, dtype=torch.float64))
    x[:, [1, 8, 15]] = torch.tensor([5.0, -30.0, 2.0], dtype=torch.float64)
    layer = with_inputs(layer, x)
    solution = FLAP().solve(layer)
    assert (~solution.mask.any(0)).nonzero().flatten().tolist() == [1, 8, 15]
    torch.testing.assert_close(x @ solution.weight.T + solution.bias, x @ layer.dense.T)
    without = FLAP().solve(dataclasses.replace(layer, bias=None, dense_bias=None))
    assert without.bias is None
    assert FLAP(add=True).solve(dataclasses.replace(layer, bias=None, dense_bias=None)).bias is not None


@pytest.mark.parametrize("cls", [Wanda, RIA, FLAP])
def test_scores_that_are_nan_are_refused(cls):
    layer, _ = given(0, form="groups 1" if cls is FLAP else "unstructured")
    with pytest.raises(ValueError, match="the scores of layer hold NaN"):
        cls().solve(dataclasses.replace(layer, weight=layer.weight * torch.nan))


def test_shares_of_a_row_are_the_prefix_rule_with_one_threshold_for_all():
    """The authors' code: for an alpha, each row loses the smallest scores, as many as sum up to alpha of the row's at most."""
    layer, _ = given(5, out=17, inputs=23, form="unstructured")
    scores = wanda_scores(layer)
    for alpha in (0.05, 0.2, 0.4, 0.7):
        expected = torch.ones_like(layer.mask)
        for r, row in enumerate(scores.tolist()):
            lost = 0.0
            for j in sorted(range(len(row)), key=lambda j: row[j]):
                if lost + row[j] > alpha * sum(row):
                    break
                lost += row[j]
                expected[r, j] = False
        kept = int(expected.sum())
        found = Wanda(pattern="unstructured", shares=True).solve(dataclasses.replace(layer, kept=kept))
        assert torch.equal(found.mask, expected)
        assert len(set(found.mask.sum(1).tolist())) > 1
    with pytest.raises(ValueError, match="different numbers"):
        Wanda(shares=True)


def test_shares_where_all_is_equal_or_nothing_is_left():
    assert torch.allclose(cumulative_shares(torch.ones(2, 4)), torch.tensor([0.25, 0.5, 0.75, 1.0]).double())
    assert torch.equal(cumulative_shares(torch.zeros(2, 3)), torch.zeros(2, 3).double())
