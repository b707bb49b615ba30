"""Factorisations of X^T X: safe, and what they say they are."""

import pytest
import torch

from openwork.reconstruction.hessian import cholesky, damped, inverse_factor, layer_error
from tests.reconstruction.layers import layer


@pytest.mark.parametrize("seed", range(3))
def test_the_factor_is_that_of_the_inverse_and_of_all_trailing_blocks(seed):
    _, x = layer(seed)
    h, u = damped(x.T @ x, 0.01), inverse_factor(x.T @ x, 0.01)
    torch.testing.assert_close(u.T @ u, torch.linalg.inv(h))
    assert not u.tril(-1).any()
    for j in (0, 5, 21):
        trailing = torch.linalg.inv(h[j:, j:])[0]
        torch.testing.assert_close(u[j, j:], trailing / trailing[0].sqrt())


def test_error_is_the_squared_difference_of_outputs():
    w, x = layer(1)
    change = torch.randn_like(w)
    torch.testing.assert_close(layer_error(change, x.T @ x), (x @ change.T).square().sum())


def test_dead_inputs_get_a_diagonal_and_the_rest_is_untouched():
    _, x = layer(2, dead=3)
    h = x.T @ x
    d = damped(h, 0.0)
    assert torch.equal(d.diagonal()[:3], torch.ones(3, dtype=torch.float64))
    assert torch.equal(d[3:, 3:], h[3:, 3:])
    assert not h[:3].any()


def test_damping_is_raised_until_the_factorisation_succeeds():
    """Rank one, no damping: not positive definite in floating point."""
    x = torch.linspace(1, 2, 6, dtype=torch.float64)[None]
    h = -0.05 * torch.eye(6, dtype=torch.float64) + x.T @ x
    assert int(torch.linalg.cholesky_ex(damped(h, 0.0)).info)
    factor = cholesky(h, 0.0)
    needed = factor @ factor.T - h
    assert needed.diagonal().min() > 0.05
    torch.testing.assert_close(needed, needed.diagonal().diag(), atol=1e-12, rtol=0)


def test_what_cannot_be_factorised_is_said():
    with pytest.raises(ValueError, match="not finite"):
        cholesky(torch.full((2, 2), torch.nan), 0.01)
    with pytest.raises(ValueError, match="cannot be factorised"):
        cholesky(-torch.eye(3), 0.01)
