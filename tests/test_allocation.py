"""Allocations against the numbers of their papers, and against brute force."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from openwork.allocation import (
    ERK,
    LAMP,
    Balanced,
    Global,
    Like,
    Pyramid,
    Uniform,
    UniformPlus,
    allocation,
    exact_counts,
    lamp_scores,
)

LENET = [(300, 784), (100, 300), (10, 100)]
CONVS = [(16, 3, 3, 3), (32, 16, 3, 3), (64, 32, 3, 3), (10, 64)]
NAMES = ["uniform", "er", "erk", "balanced", "pyramid", "global", "lamp", "deviation"]
shape = st.one_of(
    st.tuples(st.integers(1, 9), st.integers(1, 30)),
    st.tuples(st.integers(1, 6), st.integers(1, 6), st.integers(1, 3)),
)


def sizes(shapes):
    return [math.prod(s) for s in shapes]


def densities(name, shapes, density):
    total = round(density * sum(sizes(shapes)))
    counts = allocation(name).counts(shapes, total)
    assert sum(counts) == total
    return [c / n for c, n in zip(counts, sizes(shapes), strict=True)]


@pytest.mark.parametrize(
    ("name", "shapes", "density", "expected"),
    [
        ("erk", LENET, 0.1, [0.079568, 0.230189, 1.0]),
        ("erk", LENET, 0.05, [0.038484, 0.111334, 0.918507]),
        ("erk", LENET, 0.02, [0.015394, 0.044534, 0.367403]),
        ("erk", CONVS, 0.1, [0.566298, 0.114675, 0.054152, 1.0]),
        ("er", CONVS, 0.1, [0.61936, 0.14669, 0.073345, 0.180918]),
        ("pyramid", LENET, 0.1, [0.111586, 0.012451, 0.001389]),
    ],
)
def test_published_densities(name, shapes, density, expected):
    for got, want, size in zip(densities(name, shapes, density), expected, sizes(shapes), strict=True):
        assert abs(got - want) <= 1.0 / size + 1e-6  # the formula's real number, rounded to whole connections


@settings(max_examples=60)
@given(st.lists(shape, min_size=1, max_size=6), st.data())
def test_every_allocation_is_exact_and_within_the_layers(shapes, data):
    total = data.draw(st.integers(0, sum(sizes(shapes))))
    name = data.draw(st.sampled_from(NAMES))
    g = torch.Generator().manual_seed(total)
    scores = [torch.randint(0, 4, (n,), generator=g).double() for n in sizes(shapes)]
    counts = allocation(name).counts(shapes, total, scores)
    assert sum(counts) == total
    assert all(0 <= c <= n for c, n in zip(counts, sizes(shapes), strict=True))
    assert all(isinstance(c, int) for c in counts)


@settings(max_examples=40)
@given(st.lists(shape, min_size=1, max_size=5), st.sampled_from([0.1, 0.35, 0.8]))
def test_densities_are_proportional_until_a_layer_is_full(shapes, density):
    total = round(density * sum(sizes(shapes)))
    counts = ERK().counts(shapes, total)
    raw = [sum(s) / math.prod(s) for s in shapes]
    # A factor exists with count = min(size, factor * raw * size), to less than one connection.
    low = max((c - 1) / (r * n) for c, r, n in zip(counts, raw, sizes(shapes), strict=True))
    factors_up = [(c + 1) / (r * n) for c, r, n in zip(counts, raw, sizes(shapes), strict=True) if c < n]
    assert not factors_up or low <= min(factors_up) + 1e-9


@settings(max_examples=30)
@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 30)), min_size=1, max_size=5), st.floats(0, 1))
def test_degenerate_powers(shapes, density):
    total = round(density * sum(sizes(shapes)))
    assert ERK(power=0.0).counts(shapes, total) == Uniform().counts(shapes, total)
    assert allocation("er").counts(shapes, total) == allocation("erk").counts(shapes, total)


def test_balanced_gives_away_what_a_layer_cannot_hold():
    counts = Balanced().counts(LENET, round(0.1 * sum(sizes(LENET))))
    assert counts == [12810, 12810, 1000]
    assert Balanced().counts([(4, 5), (4, 5), (2, 5)], 15) == [5, 5, 5]


def test_pyramid_falls_with_depth():
    first, second, third = Pyramid().counts([(10, 100)] * 3, 300)
    assert first > second > third


def test_uniform_plus():
    total = round(0.1 * sum(sizes(CONVS)))
    counts = UniformPlus().counts(CONVS, total)
    assert counts[0] == 16 * 27  # the first convolution is dense
    assert counts[-1] == round(0.2 * 640)
    assert abs(counts[1] / (32 * 144) - counts[2] / (64 * 288)) < 1e-3
    assert sum(counts) == total
    assert UniformPlus().counts(LENET, 100_000) == Uniform().counts(
        LENET, 100_000
    )  # no convolution, not sparse
    with pytest.raises(ValueError, match="first and last layer alone"):
        UniformPlus().counts(CONVS, 400)


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


@settings(max_examples=60)
@given(st.lists(st.tuples(st.floats(0, 20), st.integers(0, 20)), min_size=1, max_size=6), st.data())
def test_exact_counts(layers, data):
    caps = [cap for _, cap in layers]
    total = data.draw(st.integers(0, sum(caps)))
    counts = exact_counts([w for w, _ in layers], caps, total)
    assert sum(counts) == total
    assert all(0 <= c <= cap for c, cap in zip(counts, caps, strict=True))


def test_exact_counts_gives_to_the_largest_remainder_and_the_first():
    assert exact_counts([1.2, 2.7, 3.1], [9, 9, 9], 7) == [1, 3, 3]
    assert exact_counts([1.5, 1.5, 1.5], [9, 9, 9], 5) == [2, 2, 1]
    assert exact_counts([3.0, 3.0], [1, 9], 6) == [1, 5]


@pytest.mark.parametrize("total", [-1, 7])
def test_impossible_totals_are_refused(total):
    with pytest.raises(ValueError, match="cannot keep"):
        exact_counts([1.0, 2.0], [2, 4], total)
    for name in NAMES:
        with pytest.raises(ValueError, match="cannot keep"):
            allocation(name).counts([(1, 2), (2, 2)], total, [torch.rand(2), torch.rand(4)])


@pytest.mark.parametrize("name", ["global", "lamp"])
def test_rankings_need_scores(name):
    with pytest.raises(ValueError, match="ranks connections by score"):
        allocation(name).counts([(2, 2)], 1)


def test_names():
    assert allocation("erk") == ERK()
    rule = Global(floor=0.1)
    assert allocation(rule) is rule
    with pytest.raises(ValueError, match="choose one of uniform, uniform_plus, er, erk"):
        allocation("ekr")


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=5), st.randoms())
def test_the_split_of_masks_is_found_again(shapes, random):
    masks = {
        str(i): torch.tensor([random.random() < 0.4 for _ in range(a * b)]).view(a, b)
        for i, (a, b) in enumerate(shapes)
    }
    counts = [int(mask.sum()) for mask in masks.values()]
    assert Like.of(masks).counts(shapes, sum(counts)) == counts


def test_another_total_keeps_the_proportions_until_a_layer_is_full():
    like = Like((0.5, 0.1, 0.0))
    assert like.counts([(4, 5), (10, 10), (2, 3)], 40) == [20, 20, 0]
    assert like.counts([(4, 5), (10, 10), (2, 3)], 10) == [5, 5, 0]
    with pytest.raises(ValueError, match="that of 3 parameters, and there are 1"):
        like.counts([(4, 5)], 2)
    with pytest.raises(ValueError, match="densities are fractions"):
        Like((1.5,))
