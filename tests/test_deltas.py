"""Deltas give back what was tuned; TIES elects signs as a loop over single numbers would."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from openwork.deltas import added, agreeing_mean, delta, elected, thinned


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@given(seed=st.integers(0, 200), step=st.floats(1e-6, 10.0))
def test_base_and_delta_are_the_tuned_model(seed, step):
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        base = random(7, 11, seed=seed).to(dtype)
        tuned = base + (step * random(7, 11, seed=seed + 1)).to(dtype)
        assert torch.equal(added(base, delta(tuned, base)), tuned)


def test_what_is_not_kept_dies_even_if_it_is_nan():
    change = torch.tensor([1.0, torch.nan, -3.0])
    assert torch.equal(
        thinned(change, torch.tensor([True, False, True]), 0.5), torch.tensor([2.0, 0.0, -6.0])
    )


@given(seed=st.integers(0, 100), models=st.integers(1, 5))
def test_ties_number_by_number(seed, models):
    changes = [random(4, 5, seed=seed * 7 + i) for i in range(models)]
    changes = [torch.where(random(4, 5, seed=seed * 7 + i + 99) > 0, c, 0) for i, c in enumerate(changes)]
    merged, signs = agreeing_mean(changes), elected(changes)
    for at in range(20):
        values = [float(c.flatten()[at]) for c in changes]
        total = sum(values)
        sign = (total > 0) - (total < 0)
        agree = [v for v in values if v * sign > 0]
        assert float(signs.flatten()[at]) == sign
        torch.testing.assert_close(
            merged.flatten()[at], torch.tensor(sum(agree) / len(agree) if agree else 0.0)
        )


def test_disjoint_deltas_are_summed():
    one, other = random(6, 6), random(6, 6, seed=1)
    half = random(6, 6, seed=2) > 0
    changes = [torch.where(half, one, 0), torch.where(half, 0, other)]
    assert torch.equal(agreeing_mean(changes), changes[0] + changes[1])


def test_what_cancels_stays():
    assert torch.equal(agreeing_mean([torch.tensor([1.0]), torch.tensor([-1.0])]), torch.zeros(1))
