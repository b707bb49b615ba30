"""Every allocation is found by its name, is exact, and gives the numbers of its paper."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from openwork.allocation import ERK, Global, allocation
from tests.allocation.networks import CONVS, LENET, NAMES, shape, sizes


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


def test_names():
    assert allocation("erk") == ERK()
    rule = Global(floor=0.1)
    assert allocation(rule) is rule
    with pytest.raises(ValueError, match="choose one of uniform, uniform_plus, er, erk"):
        allocation("ekr")
