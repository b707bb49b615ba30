"""Rankings of all connections against brute force and the formulas of the papers."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from openwork.allocation import LAMP, Global, allocation
from openwork.allocation.ranking import lamp_scores
from tests.allocation.networks import sizes


@settings(max_examples=40)
@given(st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=12), min_size=1, max_size=4), st.data())
def test_global_is_one_sort(layers, data):
    total = data.draw(st.integers(0, sum(map(len, layers))))
    everything = [(-s, layer, i) for layer, scores in enumerate(layers) for i, s in enumerate(scores)]
    best = sorted(everything)[:total]
    expected = [sum(layer == number for _, layer, _ in best) for number in range(len(layers))]
    scores = [torch.tensor(scores) for scores in layers]
    assert Global().counts([(len(s), 1) for s in layers], total, scores) == expected


def test_global_equals_uniform_for_layers_of_equal_weights():
    same = torch.randn(60, generator=torch.Generator().manual_seed(0)).abs()
    shuffled = [same, same.flip(0), same[torch.randperm(60, generator=torch.Generator().manual_seed(1))]]
    shapes = [(6, 10), (10, 6), (5, 12)]
    for per_layer in (0, 7, 31, 60):
        assert Global().counts(shapes, 3 * per_layer, shuffled) == [per_layer] * 3


def test_scaling_a_layer_can_only_raise_its_share():
    g = torch.Generator().manual_seed(3)
    a, b = torch.rand(50, generator=g), torch.rand(70, generator=g)
    shapes = [(5, 10), (7, 10)]
    plain = Global().counts(shapes, 40, [a, b])
    scaled = Global().counts(shapes, 40, [1.7 * a, b])
    assert scaled[0] > plain[0]
    assert LAMP().counts(shapes, 40, [a, b]) == LAMP().counts(shapes, 40, [1.7 * a, b])


@settings(max_examples=40)
@given(st.integers(0, 2**32), st.sampled_from([0.001, 0.02, 0.05]), st.integers(42, 300))
def test_a_floor_is_kept_and_the_total_exact(seed, floor, total):
    g = torch.Generator().manual_seed(seed)
    shapes = [(3, 4), (20, 10), (9, 11)]
    scores = [torch.rand(n, generator=g) * scale for n, scale in zip(sizes(shapes), (1, 30, 2), strict=True)]
    least = [min(math.floor(floor * 311), n) for n in sizes(shapes)]
    counts = Global(floor=floor).counts(shapes, total, scores)
    assert sum(counts) == total
    assert all(c >= m for c, m in zip(counts, least, strict=True))
    plain = Global().counts(shapes, total, scores)
    if all(c >= m for c, m in zip(plain, least, strict=True)):
        assert counts == plain


def test_a_floor_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="reserves"):
        Global(floor=0.4).counts([(10, 10)] * 3, 5, [torch.rand(100)] * 3)


@settings(max_examples=40)
@given(st.lists(st.floats(0.0, 4.0), min_size=1, max_size=20))
def test_lamp_scores_are_the_formula(weights):
    ascending = sorted(weights)
    # v_i over the sum of what is at least as large
    expected = [
        v * v / mass if (mass := math.fsum(u * u for u in ascending[i:])) > 0 else 0.0
        for i, v in enumerate(ascending)
    ]
    got = lamp_scores(torch.tensor(weights, dtype=torch.float64)).tolist()
    assert got == pytest.approx(expected[::-1], rel=1e-12)


def test_deviation_is_one_threshold_in_units_of_every_layer():
    g = torch.Generator().manual_seed(0)
    layers = [torch.randn(60, generator=g), 100 * torch.randn(80, generator=g), torch.rand(40, generator=g)]
    counts = allocation("deviation").counts([(60,), (80,), (40,)], 70, [w.abs() for w in layers])
    units = [w.abs() / w.square().mean().sqrt() for w in layers]
    threshold = torch.cat(units).sort(descending=True).values[69]
    assert counts == [int((u >= threshold).sum()) for u in units]


def test_lamp_facts():
    assert lamp_scores(torch.ones(5)).tolist() == pytest.approx([1, 1 / 2, 1 / 3, 1 / 4, 1 / 5])
    g = torch.Generator().manual_seed(0)
    layers = [torch.rand(n, generator=g) * s for n, s in ((40, 1), (7, 1e-6), (60, 1e3))]
    assert all(lamp_scores(w)[0] == 1.0 for w in layers)
    assert min(LAMP().counts([(40, 1), (7, 1), (60, 1)], 3, layers)) == 1  # no layer is emptied


def test_lamp_does_not_rank_what_is_gone():
    alive = torch.tensor([3.0, 2.0, 1.0])
    gone = torch.cat([alive, torch.full((4,), -math.inf)])
    assert lamp_scores(gone)[:3].tolist() == lamp_scores(alive).tolist()
    other = torch.tensor([9.0, 1.0, 0.0])
    assert LAMP().counts([(7, 1), (3, 1)], 6, [gone, other]) == [3, 3]
    assert LAMP().counts([(7, 1), (3, 1)], 4, [gone, other]) == LAMP().counts([(3, 1)] * 2, 4, [alive, other])


def test_lamp_keeps_millions_of_tiny_squares_apart():
    weights = torch.cat([torch.full((200_000,), 1e-4), torch.tensor([1.0])])
    last = lamp_scores(weights)[-1].item()
    assert last == pytest.approx(1e-8 / (1 + 200_000 * 1e-8), rel=1e-6)


@pytest.mark.parametrize("name", ["global", "lamp"])
def test_rankings_need_scores(name):
    with pytest.raises(ValueError, match="ranks connections by score"):
        allocation(name).counts([(2, 2)], 1)
