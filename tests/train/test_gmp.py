"""GMP follows the cubic, nests its masks, and ends exactly where it should."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from openwork.allocation import Global
from openwork.sparsifier import attach
from openwork.train.gmp import GMP


def net(sizes=(12, 30, 9, 4), seed=0):
    g = torch.Generator().manual_seed(seed)
    model = nn.Sequential(*(nn.Linear(a, b) for a, b in itertools.pairwise(sizes)))
    with torch.no_grad():
        for i, p in enumerate(model.parameters()):
            p.copy_(torch.randn(p.shape, generator=g) * (1 + i))
    return model


def trace(method, model=None, steps=None):
    """Masks after every step, the weights wobbling in between."""
    model = model or net()
    sparsifier = attach(model, None, method)
    g = torch.Generator().manual_seed(9)
    masks = [sparsifier.masks]
    for _ in range(steps or method.steps):
        with torch.no_grad():
            for p in model.parameters():
                p += 0.05 * torch.randn(p.shape, generator=g)
        sparsifier.step()
        masks.append(sparsifier.masks)
    return sparsifier, masks


def total(masks):
    return sum(int(m.sum()) for m in masks.values())


@pytest.mark.parametrize("allocation", ["uniform", "global", "erk", "lamp", Global(floor=0.02)])
def test_the_number_of_connections_follows_the_cubic(allocation):
    method = GMP(sparsity=0.9, steps=40, begin=0.1, until=0.85, every=5, allocation=allocation)
    sparsifier, masks = trace(method)
    size = sparsifier.plan.numel
    assert size == 12 * 30 + 30 * 9 + 9 * 4
    events = [4, 9, 14, 19, 24, 29, 34]
    for t, now in enumerate(masks):
        last = max((e for e in events if e <= t), default=None)
        progress = 0.0 if last is None else (last - 4) / 30
        sparsity = (1 - 67 / size) * (1 - (1 - progress) ** 3)
        assert total(now) == pytest.approx((1 - sparsity) * size, abs=0.5)
    assert total(masks[-1]) == sparsifier.plan.kept == round(0.1 * size)
    assert sparsifier.updates == len(events)


@pytest.mark.parametrize("allocation", ["uniform", "global", "erk"])
def test_masks_are_nested(allocation):
    _, masks = trace(GMP(sparsity=0.95, steps=30, every=1, allocation=allocation))
    for earlier, later in itertools.pairwise(masks):
        assert not any(bool((later[n] & ~earlier[n]).any()) for n in later)


def test_the_smallest_weights_leave():
    model = net()
    sparsifier = attach(model, None, GMP(sparsity=0.5, steps=4, until=0.25, allocation="global"))
    weights = {n: c.weight.parameter.detach().abs().clone() for n, c in sparsifier.connections.items()}
    everything = torch.cat([w.flatten() for w in weights.values()])
    threshold = everything.sort(descending=True).values[sparsifier.plan.kept - 1]
    sparsifier.step()
    assert all(torch.equal(mask, weights[n] >= threshold) for n, mask in sparsifier.masks.items())


@settings(max_examples=25)
@given(
    st.lists(st.integers(1, 7), min_size=3, max_size=8),
    st.floats(0.3, 0.99),
    st.floats(0, 0.6),
    st.sampled_from(["uniform", "erk", "balanced", "pyramid"]),
    st.integers(1, 3),
)
def test_the_end_is_exact_however_shares_are_rounded(sizes, sparsity, initial, allocation, every):
    method = GMP(sparsity=sparsity, initial=initial, steps=24, until=1.0, every=every, allocation=allocation)
    sparsifier, masks = trace(method, net(sizes))
    assert sparsifier.kept == sparsifier.plan.kept == round((1 - sparsity) * sparsifier.plan.numel)
    assert all(total(a) >= total(b) for a, b in itertools.pairwise(masks))


def test_overrides_follow_their_own_curve_and_start_no_higher_than_they_end():
    method = GMP(sparsity=0.8, initial=0.5, steps=10, until=0.6, every=1, overrides={"1.*": 0.9, "2.*": 0.25})
    sparsifier, masks = trace(method)
    first, last = masks[1], masks[-1]
    assert int(first["1.weight"].sum()) == 135
    assert int(last["1.weight"].sum()) == 27
    assert int(first["2.weight"].sum()) == int(last["2.weight"].sum()) == 27
    assert sparsifier.kept == sparsifier.plan.kept


def test_the_window():
    method = GMP(steps=100, begin=0.1, until=0.75, every=20)
    assert [t for t in range(1, 101) if method.due(t)] == [10, 30, 50, 70, 75]
    assert [t for t in range(1, 9) if GMP(steps=8, every=100).due(t)] == [1, 6]
    assert [t for t in range(1, 9) if GMP(steps=8, begin=0.5, until=0.5).due(t)] == [4]


def test_patterns():
    model = net((12, 32, 8))
    sparsifier, _ = trace(GMP(sparsity=0.75, steps=10, every=1, pattern="1:4"), model)
    assert all(sparsifier.plan.sparse[0].pattern.allows(m) for m in sparsifier.masks.values())
    sparsifier, _ = trace(GMP(sparsity=0.75, steps=10, every=1, pattern="block 4x2"), net((12, 32, 8)))
    assert sparsifier.kept == sparsifier.plan.kept
    assert all(sparsifier.plan.sparse[0].pattern.allows(m) for m in sparsifier.masks.values())
