"""Unstructured rows, four at a time, against a dense product, with every instruction set."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from openwork.kernels.linear import ACTIVATIONS
from openwork.kernels.shared_columns import shared_columns
from tests.kernels import grouped
from tests.kernels.matrices import BATCHES, SIZES, SPARSITIES


def mask_of(rows: int, columns: int, sparsity: float, seed: int) -> torch.Tensor:
    return torch.rand(rows, columns, generator=torch.Generator().manual_seed(seed)) >= sparsity


@given(
    rows=SIZES,
    columns=SIZES,
    batch=BATCHES,
    sparsity=SPARSITIES,
    activation=st.sampled_from(ACTIVATIONS),
    seed=st.integers(0, 99),
)
def test_equals_the_dense_product(level, rows, columns, batch, sparsity, activation, seed):
    groups, weight = grouped.held(shared_columns, mask_of(rows, columns, sparsity, seed), seed)
    grouped.check_equals_dense(groups, weight, batch, activation, bias=seed % 2 == 0)


def test_many_columns_in_several_blocks(level):
    groups, weight = grouped.held(shared_columns, mask_of(37, 1000, 0.5, 1))
    for samples in (1, 20, 70):
        grouped.check_equals_dense(groups, weight, samples, "relu")


def test_bits_do_not_depend_on_threads(level, monkeypatch):
    grouped.check_bits_do_not_depend_on_threads(shared_columns, mask_of(170, 300, 0.5, 2), monkeypatch)


@pytest.mark.parametrize("batch", [1, 20])
def test_nan_reaches_only_what_is_connected(level, batch):
    mask = mask_of(9, 12, 0.5, 3)
    groups, _ = grouped.held(shared_columns, mask)
    for column in range(12):
        x = torch.zeros(batch, 12)
        x[:, column] = float("nan")
        assert torch.equal(groups.linear(x).isnan(), mask[:, column].expand(batch, 9))


def test_shapes_and_errors(level):
    grouped.check_shapes_and_errors(*grouped.held(shared_columns, mask_of(21, 30, 0.5, 4)))


@pytest.mark.parametrize(("rows", "columns"), [(0, 5), (5, 0), (0, 0)])
def test_empty_matrices(level, rows, columns):
    groups, _ = grouped.held(shared_columns, torch.zeros(rows, columns, dtype=torch.bool))
    y = groups.linear(torch.ones(3, columns), torch.full((rows,), 2.0))
    assert torch.equal(y, torch.full((3, rows), 2.0))


def test_what_cannot_be_held_is_refused():
    grouped.check_bad_matrices_are_refused(shared_columns)
