"""The column sweep: its loss identity, its independence of blocks, its limits."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from openwork.grid import top_k
from openwork.patterns import NM
from openwork.reconstruction.hessian import damped, inverse_factor, layer_error
from openwork.reconstruction.least_squares import least_squares
from openwork.reconstruction.sweep import sweep
from tests.reconstruction.layers import layer, random_mask


def half(weights, saliency, first):
    return top_k(saliency.flatten(), saliency.numel() // 2).view_as(saliency)


@settings(max_examples=20)
@given(st.integers(0, 999), st.integers(1, 30), st.integers(0, 2))
def test_the_sum_of_squared_errors_is_the_damped_loss(seed, block, dead):
    w, x = layer(seed, dead=dead)
    mask = random_mask(w, seed)
    swept = sweep(w, inverse_factor(x.T @ x), mask, block=block)
    expected = (swept.weight - w) @ damped(x.T @ x, 0.01)
    torch.testing.assert_close(swept.loss, (expected * (swept.weight - w)).sum(1))
    assert torch.equal(swept.mask, mask)
    assert not swept.weight[~mask].any()


@settings(max_examples=20)
@given(st.integers(0, 999), st.integers(1, 30))
def test_for_a_fixed_mask_the_block_does_not_matter(seed, block):
    w, x = layer(seed)
    mask = random_mask(w, seed)
    u = inverse_factor(x.T @ x)
    one, other = sweep(w, u, mask, block=1), sweep(w, u, mask, block=block)
    torch.testing.assert_close(one.weight, other.weight, rtol=1e-11, atol=1e-11)


def test_one_column_follows_the_surgeon():
    """Pruning column j alone is the optimal-brain-surgeon update among the columns from j on, and leaves those before."""
    w, x = layer(5)
    h, j = damped(x.T @ x, 0.01), 9
    mask = torch.ones_like(w, dtype=torch.bool)
    mask[:, j] = False
    found = sweep(w, inverse_factor(x.T @ x), mask).weight
    inverse = torch.linalg.inv(h[j:, j:])
    expected = w.clone()
    expected[:, j:] -= w[:, [j]] / inverse[0, 0] * inverse[0]
    expected[:, j] = 0
    torch.testing.assert_close(found, expected)
    assert torch.equal(found[:, :j], w[:, :j])


def test_with_a_diagonal_h_nothing_is_made_up_for_and_the_score_is_wandas():
    w, _ = layer(6)
    d = torch.linspace(0.5, 3, w.shape[1], dtype=torch.float64)
    seen = []

    def spy(weights, saliency, first):
        seen.append(saliency.clone())
        return half(weights, saliency, first)

    swept = sweep(w, inverse_factor(d.diag(), 0.0), choose=spy, every=w.shape[1])
    torch.testing.assert_close(swept.weight, w * swept.mask)
    torch.testing.assert_close(seen[0], w.square() * d)
    assert torch.equal(swept.mask, top_k((w.abs() * d.sqrt()).flatten(), w.numel() // 2).view_as(w))


@pytest.mark.parametrize("every", [1, 5, 22, 128])
def test_the_mask_is_chosen_slice_by_slice_on_current_weights(every):
    """The last slice may be short, and slices after the first see weights that have made up for what went before."""
    w, x = layer(7)
    u = inverse_factor(x.T @ x)
    seen = {}

    def spy(weights, saliency, first):
        seen[first] = weights.clone()
        return half(weights, saliency, first)

    swept = sweep(w, u, choose=spy, every=every, block=3)
    assert sorted(seen) == list(range(0, 22, every))
    for first, weights in seen.items():
        width = min(every, 22 - first)
        assert weights.shape[1] == width
        assert int(swept.mask[:, first : first + width].sum()) == 13 * width // 2
        # what the sweep would have made of the columns so far, with their final mask
        so_far = swept.mask.clone()
        so_far[:, first:] = True
        torch.testing.assert_close(weights, sweep(w, u, so_far).weight[:, first : first + width])


def test_n_of_m_is_chosen_group_by_group():
    w, x = layer(8, inputs=24)
    nm = NM(2, 4)
    swept = sweep(
        w, inverse_factor(x.T @ x), choose=lambda _, s, first: nm.choose(s, s.numel() // 2), every=4, block=7
    )
    assert nm.allows(swept.mask)


def test_what_is_gone_stays_gone():
    """A mask that is given is what the choice is made among; a place that is chosen for want of others stays zero."""
    w, x = layer(9)
    mask = random_mask(w, 9, 0.3)
    swept = sweep(w, inverse_factor(x.T @ x), mask, choose=half, every=11)
    assert not swept.weight[~mask].any()
    assert int(swept.mask.sum()) == 2 * (13 * 11 // 2)


class Rounding:
    """Rounds to multiples of a step that it fits to each group."""

    def __init__(self, group, step=0.5):
        self.group, self.step, self.fitted = group, step, {}

    def fit(self, weights, mask, first):
        self.fitted[first] = (weights.clone(), mask.clone())

    def column(self, weights, mask, index, pivot):
        assert not weights[~mask].any()
        return (weights / self.step).round() * self.step


@pytest.mark.parametrize(("group", "block"), [(0, 4), (5, 4), (8, 3), (4, 128)])
def test_a_quantiser_is_fitted_to_current_weights_and_errors_are_passed_on(group, block):
    w, x = layer(10)
    mask = random_mask(w, 10, 0.7)
    u = inverse_factor(x.T @ x)
    rounding = Rounding(group)
    swept = sweep(w, u, mask, quantize=rounding, block=block)
    assert sorted(rounding.fitted) == list(range(0, 22, group or 22))
    on_grid = swept.weight / 0.5
    torch.testing.assert_close(on_grid, on_grid.round(), atol=1e-12, rtol=0)
    assert not swept.weight[~mask].any()
    change = swept.weight - w
    torch.testing.assert_close(swept.loss.sum(), layer_error(change, damped(x.T @ x, 0.01)))
    again = sweep(w, u, mask, quantize=Rounding(group), block=1)
    torch.testing.assert_close(again.weight, swept.weight)
    for first, (weights, kept) in rounding.fitted.items():
        assert torch.equal(kept, mask[:, first : first + weights.shape[1]])
        assert weights.shape[1] == min(group or 22, 22 - first)


def test_a_weight_that_is_returned_as_it_came_costs_nothing():
    class Nothing(Rounding):
        def column(self, weights, mask, index, pivot):
            return weights

    w, x = layer(11)
    swept = sweep(w, inverse_factor(x.T @ x), quantize=Nothing(4))
    assert torch.equal(swept.weight, w)
    assert not swept.loss.any()


def test_the_update_is_between_no_update_and_the_optimum():
    for seed in range(5):
        w, x = layer(seed)
        h = x.T @ x
        mask = torch.zeros_like(w, dtype=torch.bool).scatter_(
            1, (w.abs() * h.diagonal().sqrt()).topk(11, 1).indices, True
        )
        none, update, best = (
            float(layer_error(a - w, damped(h, 0.01)))
            for a in (w * mask, sweep(w, inverse_factor(h), mask).weight, least_squares(w, h, mask))
        )
        assert best < update < none
