"""Alternating directions: the limit is the optimum for the mask, whatever rho, and counts are exact on the way."""

import pytest
import torch

from openwork.patterns import NM, FanIn, Unstructured
from openwork.reconstruction.admm import Normalized, admm, alps
from openwork.reconstruction.hessian import damped, layer_error
from openwork.reconstruction.least_squares import least_squares
from tests.reconstruction.layers import layer, random_mask


def error(weight, w, x):
    return float(layer_error(weight - w, damped(x.T @ x, 0.01)))


@pytest.mark.parametrize("dead", [0, 2])
@pytest.mark.parametrize("rho", [0.1, 1.0, 10.0])
def test_for_a_fixed_mask_it_converges_to_least_squares_whatever_rho(rho, dead):
    w, x = layer(1, dead=dead)
    mask = random_mask(w, 1)
    best = least_squares(w, x.T @ x, mask)
    found, same = admm(w, Normalized(x.T @ x), mask, steps=5000, rho=rho)
    assert same is mask
    torch.testing.assert_close(found, best, rtol=1e-6, atol=1e-8)


def test_the_rate_of_the_sheet():
    """Errors relative to the optimum fall with the number of iterations, and twenty are within a percent."""
    w, x = layer(2, out=48, inputs=64, tokens=512)
    mask = FanIn().choose(w.abs() * x.square().sum(0).sqrt(), w.numel() // 2)
    best = error(least_squares(w, x.T @ x, mask), w, x)
    ratios = [error(admm(w, Normalized(x.T @ x), mask, steps=n)[0], w, x) / best for n in (1, 5, 20, 100)]
    assert ratios == sorted(ratios, reverse=True)
    assert ratios[2] < 1.01
    assert ratios[3] == pytest.approx(1.0, abs=1e-4)


def test_both_ways_to_invert_agree():
    w, x = layer(3)
    n = Normalized(x.T @ x)
    for rho in (0.05, 2.0, 0.05):
        torch.testing.assert_close(n.solve(w, rho), w @ n.inverse(rho))
    torch.testing.assert_close(n.hessian.diagonal(), torch.ones(22, dtype=torch.float64))


@pytest.mark.parametrize("pattern", [Unstructured(), FanIn(), NM(1, 2)])
@pytest.mark.parametrize("solve", [admm, alps])
def test_the_chosen_mask_is_legal_and_beats_choosing_up_front(pattern, solve):
    for seed in range(3):
        w, x = layer(seed, out=20)
        kept = w.numel() // 2

        def choose(scores, pattern=pattern, kept=kept):
            return pattern.choose(scores, kept)

        found, mask = solve(w, Normalized(x.T @ x), choose=choose)
        assert pattern.allows(mask)
        assert int(mask.sum()) == pattern.legal_kept(tuple(w.shape), kept)
        assert not found[~mask].any()
        wanda = pattern.choose(w.abs() * x.square().sum(0).sqrt(), kept)
        assert error(found, w, x) < error(least_squares(w, x.T @ x, wanda), w, x) * 1.05


def test_the_gradual_mask_shrinks_along_the_cubic_ramp(monkeypatch):
    """What is dropped at each step is the lowest fraction of what the final mask would drop."""
    from openwork.reconstruction import admm as page

    w, x = layer(4)
    counts = []
    inner = page._ramped
    monkeypatch.setattr(page, "_ramped", lambda *a: counts.append(int((m := inner(*a)).sum())) or m)
    admm(w, Normalized(x.T @ x), choose=lambda s: Unstructured().choose(s, 86), steps=12, gradual=5)
    dropped = 286 - 86
    assert counts == [286 - round((1 - (1 - t / 5) ** 3) * dropped) for t in range(1, 6)]


@pytest.mark.parametrize("solve", [admm, alps])
def test_what_is_gone_stays_gone(solve):
    w, x = layer(5)
    mask = random_mask(w, 5)
    found, now = solve(w, Normalized(x.T @ x), mask=mask, choose=lambda s: Unstructured().choose(s, 200))
    assert int(now.sum()) == 200
    assert not found[~mask].any()


def test_alps_is_near_the_optimum_of_its_mask():
    w, x = layer(6, out=30)
    found, mask = alps(w, Normalized(x.T @ x), lambda s: Unstructured().choose(s, 200))
    assert error(found, w, x) < 1.02 * error(least_squares(w, x.T @ x, mask), w, x)
