"""n:m:g against a dense product, balanced and not, with every instruction set."""

from functools import partial
from itertools import combinations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from openwork.kernels.groups import entries
from openwork.kernels.linear import ACTIVATIONS
from openwork.kernels.nmg import RATIOS, nmg, patterns, steps
from tests.kernels import grouped
from tests.kernels.matrices import BATCHES, SIZES, of_mask


def mask_of(groups: int, columns: int, n: int, m: int, empty: float, seed: int) -> torch.Tensor:
    """Every column has n of the m rows of a group, or with probability `empty` none."""
    generator = torch.Generator().manual_seed(seed)
    ranks = torch.rand(groups, m, columns, generator=generator).argsort(1)
    return ((ranks < n) & (torch.rand(groups, 1, columns, generator=generator) >= empty)).view(-1, columns)


def test_patterns_are_all_sets_of_rows():
    for n, m in [*RATIOS, (1, 4), (3, 6)]:
        found = [{row for row in range(m) if number >> row & 1} for number in patterns(n, m)]
        assert sorted(map(sorted, found)) == sorted(map(list, combinations(range(m), n)))
        assert patterns(n, m) == sorted(patterns(n, m))


@pytest.mark.parametrize(("n", "m"), RATIOS)
@given(
    groups=st.integers(1, 9),
    columns=SIZES,
    batch=BATCHES,
    empty=st.sampled_from([0.0, 0.5, 1.0]),
    activation=st.sampled_from(ACTIVATIONS),
    seed=st.integers(0, 99),
)
def test_equals_the_dense_product(level, n, m, groups, columns, batch, empty, activation, seed):
    held, weight = grouped.held(partial(nmg, n=n, m=m), mask_of(groups, columns, n, m, empty, seed), seed)
    grouped.check_equals_dense(held, weight, batch, activation, bias=seed % 2 == 0)


@pytest.mark.parametrize(("n", "m"), RATIOS)
def test_many_columns_in_several_blocks(level, n, m):
    held, weight = grouped.held(partial(nmg, n=n, m=m), mask_of(5, 3000, n, m, 0.0, 1))
    assert held.blocks > 1
    for samples in (1, 20, 70):
        grouped.check_equals_dense(held, weight, samples, "relu")


@pytest.mark.parametrize(("n", "m"), RATIOS)
def test_bits_do_not_depend_on_threads(level, n, m, monkeypatch):
    mask = mask_of(170 // m, 300, n, m, 0.0, 2)
    grouped.check_bits_do_not_depend_on_threads(partial(nmg, n=n, m=m), mask, monkeypatch)


@pytest.mark.parametrize(("n", "m"), RATIOS)
def test_nan_reaches_only_what_is_connected(level, n, m):
    mask = mask_of(2, 7, n, m, 0.2, 3)
    held, _ = grouped.held(partial(nmg, n=n, m=m), mask)
    for column in range(7):
        x = torch.zeros(3, 7)
        x[:, column] = float("nan")
        assert torch.equal(held.linear(x).isnan(), mask[:, column].expand(3, -1))


@pytest.mark.parametrize(("n", "m"), RATIOS)
def test_shapes_and_errors(level, n, m):
    grouped.check_shapes_and_errors(*grouped.held(partial(nmg, n=n, m=m), mask_of(3, 30, n, m, 0.0, 4)))


@pytest.mark.parametrize(("n", "m"), RATIOS)
@given(groups=st.integers(1, 4), columns=st.integers(1, 500), seed=st.integers(0, 99))
def test_every_entry_has_a_slot_of_its_pattern(n, m, groups, columns, seed):
    prepared = of_mask(mask_of(groups, columns, n, m, 0.1, seed))
    found = entries(prepared.crow, prepared.col, prepared.shape, m)
    arranged = steps(found, columns, n, m)
    sets = torch.tensor(patterns(n, m))
    assert arranged.slot.unique().numel() == arranged.slot.numel()
    assert torch.equal(sets[arranged.slot % len(sets)], found.pattern)
    slots = int(arranged.first[-1]) * len(sets)
    assert arranged.filled == found.column.numel() / max(1, slots)


def test_what_cannot_be_held_is_refused():
    grouped.check_bad_matrices_are_refused(partial(nmg, n=2, m=4))
    with pytest.raises(ValueError, match="3 of 4 rows have no kernel"):
        grouped.held(partial(nmg, n=3, m=4), torch.ones(4, 4, dtype=torch.bool))
    mask = mask_of(3, 5, 2, 4, 0.0, 5)
    mask[4:8, 2] = True
    with pytest.raises(ValueError, match=r"column 2 has 4 of the rows 4 \.\.\. 7"):
        grouped.held(partial(nmg, n=2, m=4), mask)
