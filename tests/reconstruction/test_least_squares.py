"""The exact optimum for a mask, against other ways to find it."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from openwork.patterns import Groups
from openwork.reconstruction import least_squares as page
from openwork.reconstruction.gradient import conjugate_gradients
from openwork.reconstruction.hessian import damped, layer_error
from openwork.reconstruction.least_squares import least_squares
from tests.reconstruction.layers import layer, random_mask


@settings(max_examples=15)
@given(st.integers(0, 999), st.floats(0.05, 1.0), st.integers(0, 2))
def test_the_gradient_of_what_is_kept_is_zero(seed, share, dead):
    w, x = layer(seed, dead=dead)
    mask = random_mask(w, seed, share)
    found = least_squares(w, x.T @ x, mask)
    assert not found[~mask].any()
    gradient = ((found - w) @ damped(x.T @ x, 0.01))[mask]
    assert gradient.abs().max() < 1e-8 * (w @ damped(x.T @ x, 0.01)).abs().max() if mask.any() else True


def test_it_is_ordinary_least_squares_on_the_outputs():
    w, x = layer(3)
    mask = random_mask(w, 3)
    found = least_squares(w, x.T @ x, mask, damping=1e-12)
    for r in range(len(w)):
        best = torch.linalg.lstsq(x[:, mask[r]], x @ w[r], driver="gelsd").solution
        torch.testing.assert_close(found[r, mask[r]], best, rtol=1e-6, atol=1e-8)


def test_a_full_row_is_itself_and_an_empty_one_zero():
    w, x = layer(0)
    mask = random_mask(w)
    mask[2], mask[5] = True, False
    found = least_squares(w, x.T @ x, mask)
    assert torch.equal(found[2], w[2])
    assert not found[5].any()
    assert torch.equal(least_squares(w, x.T @ x, torch.ones_like(mask)), w)


@pytest.mark.parametrize("damping", [0.0, 1e-10])
def test_a_duplicated_input_takes_over_the_weight_of_its_twin(damping):
    w, x = layer(1)
    x[:, 4] = x[:, 17]
    mask = torch.ones_like(w, dtype=torch.bool)
    mask[:, 4] = False
    found = least_squares(w, x.T @ x, mask, damping)
    torch.testing.assert_close(found[:, 17], w[:, 4] + w[:, 17], rtol=1e-5, atol=1e-6)


def test_without_damping_twins_that_both_stay_are_no_obstacle():
    w, x = layer(1)
    x[:, 4] = x[:, 17]
    mask = random_mask(w)
    mask[:, [4, 17]] = True
    h = x.T @ x
    assert layer_error(least_squares(w, h, mask, 0.0) - w, h) <= layer_error(w * ~mask, h)


def test_rows_with_one_mask_share_a_factorisation(monkeypatch):
    w, x = layer(2)
    mask = Groups(1).choose(w.abs(), w.numel() // 2)
    systems = []
    inner = torch.linalg.cholesky_ex
    monkeypatch.setattr(torch.linalg, "cholesky_ex", lambda a: systems.append(len(a)) or inner(a))
    found = least_squares(w, x.T @ x, mask)
    assert systems == [1]
    s, h = mask[0], damped(x.T @ x, 0.01)
    torch.testing.assert_close(found[:, s], w @ h[:, s] @ torch.linalg.inv(h[s][:, s]))


def test_in_batches_it_is_the_same(monkeypatch):
    w, x = layer(4)
    mask = random_mask(w, 4)
    whole = least_squares(w, x.T @ x, mask)
    monkeypatch.setattr(page, "TOGETHER", 300)
    torch.testing.assert_close(least_squares(w, x.T @ x, mask), whole)


@settings(max_examples=10)
@given(st.integers(0, 999), st.booleans())
def test_conjugate_gradients_get_there_and_never_go_up(seed, warm):
    w, x = layer(seed)
    mask = random_mask(w, seed)
    h = x.T @ x
    start = 0.9 * w if warm else None
    best = layer_error(least_squares(w, h, mask) - w, damped(h, 0.01))
    errors = [
        float(layer_error(conjugate_gradients(w, h, mask, start, steps=n, tolerance=0) - w, damped(h, 0.01)))
        for n in (0, 1, 3, 10, 60)
    ]
    assert all(later <= earlier * (1 + 1e-9) for earlier, later in itertools.pairwise(errors))
    assert errors[-1] == pytest.approx(float(best), rel=1e-8)


def test_conjugate_gradients_stop_where_they_begin_at_the_optimum():
    w, x = layer(0)
    mask = random_mask(w)
    best = least_squares(w, x.T @ x, mask)
    again = conjugate_gradients(w, x.T @ x, mask, best, tolerance=1e-6)
    assert torch.equal(again, best)
