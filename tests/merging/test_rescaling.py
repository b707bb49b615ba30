"""The divisor of DARE: found by search, or from the bound on the outputs."""

import math

import pytest
import torch

from openwork.merging.rescaling import bounded, searched


@pytest.mark.parametrize("best", [0.05, 0.11, 0.37, 0.9, 1.0])
def test_the_search_finds_the_minimum(best):
    asked = []

    def loss(q):
        asked.append(q)
        return (math.log(q) - math.log(best)) ** 2

    assert searched(loss, 0.05) == pytest.approx(best, abs=0.02)
    assert len(asked) == 20
    assert min(asked) == 0.05
    assert max(asked) == 1.0


def test_the_bound_as_the_formula_has_it():
    g = torch.Generator().manual_seed(0)
    change = torch.randn(5, 30, generator=g, dtype=torch.float64)
    mean = torch.randn(30, generator=g, dtype=torch.float64)
    share, eta = 0.02, 0.7
    p, wanted = 1 - share, []
    phi = (1 - 2 * p) / math.log((1 - p) / p)
    for row in change:
        c = [float(a) * float(b) for a, b in zip(row, mean, strict=True)]

        def bound(q, c=c):
            noise = eta**2 * phi * sum(v * v for v in c) / (4 * q * q)
            return abs(eta * (1 - share / q) * sum(c) + noise + math.log(2 / 0.05))

        wanted.append(min((share + i / 1000 for i in range(980)), key=bound))
    assert bounded(change, mean, share, eta=eta) == pytest.approx(sum(wanted) / 5, abs=1e-3)


def test_at_a_half_the_bound_is_that_of_its_limit():
    change, mean = torch.ones(2, 4), torch.tensor([0.1, -0.2, 0.3, 0.05])
    near = [bounded(change, mean, 0.5 + e) for e in (-1e-4, 0.0, 1e-4)]
    assert near[0] == pytest.approx(near[1], abs=2e-3)
    assert near[2] == pytest.approx(near[1], abs=2e-3)


def test_small_changes_need_no_other_divisor_and_large_noise_does():
    g = torch.Generator().manual_seed(1)
    change, mean = torch.randn(8, 200, generator=g), torch.randn(200, generator=g)
    small, large = bounded(1e-3 * change, mean, 0.01), bounded(10 * change, mean, 0.01)
    assert 0.01 <= small <= 1
    assert large > 0.05


def test_shares_that_cannot_be():
    with pytest.raises(ValueError, match="share"):
        searched(abs, 0.0)
    with pytest.raises(ValueError, match="share"):
        bounded(torch.ones(2, 2), torch.ones(2), 1.0)
