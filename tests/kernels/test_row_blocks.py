"""Blocks of rows against a dense product, whole and ragged, with every instruction set."""

from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from openwork.kernels.linear import ACTIVATIONS
from openwork.kernels.row_blocks import HEIGHTS, row_blocks
from tests.kernels import grouped
from tests.kernels.matrices import BATCHES, SIZES, SPARSITIES


def mask_of(rows: int, columns: int, height: int, sparsity: float, missing: float, seed: int) -> torch.Tensor:
    """Rows that agree in blocks, but for a fraction `missing` of what they keep."""
    generator = torch.Generator().manual_seed(seed)
    lists = torch.rand(-(-rows // height), columns, generator=generator) >= sparsity
    return lists.repeat_interleave(height, 0)[:rows] & (
        torch.rand(rows, columns, generator=generator) >= missing
    )


@pytest.mark.parametrize("height", HEIGHTS)
@given(
    rows=SIZES,
    columns=SIZES,
    batch=BATCHES,
    packed_for=st.sampled_from([1, 64]),
    sparsity=SPARSITIES,
    missing=st.sampled_from([0.0, 0.1, 0.7]),
    activation=st.sampled_from(ACTIVATIONS),
    seed=st.integers(0, 99),
)
def test_equals_the_dense_product(
    level, height, rows, columns, batch, packed_for, sparsity, missing, activation, seed
):
    mask = mask_of(rows, columns, height, sparsity, missing, seed)
    groups, weight = grouped.held(partial(row_blocks, height=height, batch=packed_for), mask, seed)
    grouped.check_equals_dense(groups, weight, batch, activation, bias=seed % 2 == 0)


@pytest.mark.parametrize("height", HEIGHTS)
@pytest.mark.parametrize("batch", [1, 64])
def test_many_columns_in_several_blocks(level, height, batch):
    groups, weight = grouped.held(
        partial(row_blocks, height=height, batch=batch), mask_of(37, 3000, height, 0.8, 0.1, 1)
    )
    for samples in (1, 7, 20, 70):
        grouped.check_equals_dense(groups, weight, samples, "relu")


@pytest.mark.parametrize("height", HEIGHTS)
@pytest.mark.parametrize("batch", [1, 64])
def test_bits_do_not_depend_on_threads(level, height, batch, monkeypatch):
    build = partial(row_blocks, height=height, batch=batch)
    grouped.check_bits_do_not_depend_on_threads(build, mask_of(170, 300, height, 0.7, 0.0, 2), monkeypatch)


@pytest.mark.parametrize("batch", [1, 20])
def test_nan_stays_in_the_blocks_that_have_its_column(level, batch):
    mask = torch.zeros(5, 4, dtype=torch.bool)
    mask[:2, 1] = mask[2, 2] = True  # of the second block only one row has column 2
    groups, _ = grouped.held(partial(row_blocks, height=2), mask)
    x = torch.zeros(batch, 4)
    x[:, 1] = float("nan")
    assert groups.linear(x).isnan().all(0).tolist() == [True, True, False, False, False]
    x = torch.zeros(batch, 4)
    x[:, 2], x[:, 3] = float("inf"), float("nan")
    y = groups.linear(x)
    assert y[:, 2].isinf().all()
    assert y[:, 3].isnan().all()
    assert (y[:, [0, 1, 4]] == 0).all()


@pytest.mark.parametrize("height", HEIGHTS)
def test_shapes_and_errors(level, height):
    grouped.check_shapes_and_errors(
        *grouped.held(partial(row_blocks, height=height), mask_of(21, 30, height, 0.5, 0.0, 3))
    )


@pytest.mark.parametrize(("rows", "columns"), [(0, 5), (5, 0), (0, 0)])
def test_empty_matrices(level, rows, columns):
    groups, _ = grouped.held(partial(row_blocks, height=4), torch.zeros(rows, columns, dtype=torch.bool))
    assert torch.equal(
        groups.linear(torch.ones(3, columns), torch.full((rows,), 2.0)), torch.full((3, rows), 2.0)
    )


def test_what_cannot_be_held_is_refused():
    grouped.check_bad_matrices_are_refused(partial(row_blocks, height=4))
    with pytest.raises(ValueError, match="blocks have 2, 4, 8, 16 rows, not 3"):
        grouped.held(partial(row_blocks, height=3), torch.ones(3, 3, dtype=torch.bool))
