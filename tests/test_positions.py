"""Sorted positions against sets and against torch."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from openwork.positions import ascending, below, distinct, located, merged, where

NUMBERS = st.lists(st.integers(-5, 40), max_size=60).map(sorted)
SETS = st.sets(st.integers(0, 60), max_size=60).map(sorted)


def long(numbers):
    return torch.tensor(numbers, dtype=torch.int64)


@given(NUMBERS, NUMBERS, st.booleans())
def test_how_many_are_below(numbers, bounds, or_at):
    expected = torch.searchsorted(long(numbers), long(bounds), right=or_at)
    assert torch.equal(below(long(numbers), long(bounds), or_at=or_at), expected)


def test_few_bounds_are_searched_for():
    numbers = torch.arange(0, 3000, 3)
    assert below(numbers, long([0, 1, 2999])).tolist() == [0, 1, 1000]
    assert below(numbers, long([0, 1, 2999]), or_at=True).tolist() == [1, 1, 1000]


@given(SETS, SETS)
def test_where_they_are(positions, wanted):
    index, found = located(long(positions), long(wanted))
    assert found.tolist() == [w in positions for w in wanted]
    assert [positions[i] for i, f in zip(index.tolist(), found.tolist(), strict=True) if f] == [
        w for w in wanted if w in positions
    ]
    assert not positions or bool(((index >= 0) & (index < len(positions))).all())


def test_few_places_are_searched_for():
    positions = torch.arange(0, 3000, 3)
    index, found = located(positions, long([0, 1, 2997, 2999]))
    assert found.tolist() == [True, False, True, False]
    assert index[found].tolist() == [0, 999]


@given(NUMBERS, NUMBERS)
def test_two_lists_as_one(one, other):
    assert merged(long(one), long(other)).tolist() == sorted(one + other)


@given(st.integers(0, 4000), st.integers(1, 2**62), st.integers(0, 99))
def test_in_order(n, most, seed):
    positions = torch.randint(most, (n,), generator=torch.Generator().manual_seed(seed))
    before = positions.clone()
    assert torch.equal(ascending(positions), positions.sort().values)
    assert torch.equal(positions, before)


@given(st.lists(st.booleans(), max_size=40))
def test_where_a_mask_is_true(mask):
    assert where(torch.tensor(mask, dtype=torch.bool)).tolist() == [i for i, m in enumerate(mask) if m]
    grid = torch.tensor(mask * 2, dtype=torch.bool).view(2, -1).T
    assert torch.equal(where(grid), grid.flatten().nonzero().flatten())


def test_distinct_needs_no_memory_for_what_is_not_drawn():
    drawn = distinct(10**15, 1000, torch.Generator().manual_seed(0))
    assert drawn.unique().numel() == 1000
    assert bool((drawn[1:] > drawn[:-1]).all())
    assert int(drawn.max()) > 10**14
