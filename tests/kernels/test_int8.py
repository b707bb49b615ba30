"""Weights of eight bits with a scale for each row, in every kernel for few samples that stores them."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from openwork.kernels import native
from openwork.kernels.bitmasked import bitmask_rows
from openwork.kernels.inference import LARGEST_INT8, rounded
from openwork.kernels.linear import ACTIVATIONS
from openwork.kernels.row_blocks import FEW, row_blocks
from openwork.kernels.slices import slice_rows
from openwork.kernels.small_batch import octet_rows
from openwork.kernels.squares import square_rows
from openwork.kernels.topology import row_of
from tests.kernels.matrices import SIZES, SPARSITIES, of_mask, random_matrix
from tests.kernels.test_linear import DENSE_ACTIVATION


def blocks(values, crow, col, shape, dtype=torch.int8):
    return row_blocks(crow, col, values, shape, 16, 1, dtype)


KERNELS = {
    "slices": slice_rows,
    "octets": octet_rows,
    "bitmask": bitmask_rows,
    "squares": square_rows,
    "row blocks": blocks,
}


def held(kernel: str, prepared, values: Tensor, dtype: torch.dtype = torch.int8):
    return KERNELS[kernel](values, prepared.crow, prepared.col, prepared.shape, dtype)


def dense_of(prepared, values: Tensor) -> Tensor:
    """What the rounded weights stand for, float64."""
    numbers, scales = rounded(values, prepared.crow, torch.int8)
    dense = torch.zeros(prepared.shape, dtype=torch.float64)
    row = row_of(prepared.crow, prepared.col)
    dense[row, prepared.col.long()] = numbers.double() * scales.double()[row]
    return dense


@pytest.mark.parametrize("kernel", KERNELS)
@given(
    rows=SIZES, columns=SIZES, batch=st.integers(0, 20), sparsity=SPARSITIES, bias=st.booleans(),
    seed=st.integers(0, 99), activation=st.sampled_from(ACTIVATIONS),
)  # fmt: skip
def test_only_the_weights_are_rounded(level, kernel, rows, columns, batch, sparsity, bias, seed, activation):
    prepared, values, _ = random_matrix(rows, columns, sparsity, seed)
    x, b = torch.randn(batch, columns), torch.randn(rows) if bias else None
    y = held(kernel, prepared, values).linear(x, b, activation)
    expected = DENSE_ACTIVATION[activation](
        F.linear(x.double(), dense_of(prepared, values), None if b is None else b.double())
    )
    torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=5e-5)


@given(rows=st.integers(1, 30), columns=st.integers(1, 30), seed=st.integers(0, 99))
def test_rounding_is_to_the_nearest_step_of_a_row_and_zero_stays_zero(rows, columns, seed):
    prepared, values, _ = random_matrix(rows, columns, 0.3, seed)
    values[::5] = 0
    numbers, scales = rounded(values, prepared.crow, torch.int8)
    row = row_of(prepared.crow, prepared.col)
    assert numbers.dtype == torch.int8
    assert (numbers != -128).all()
    assert not numbers[values == 0].any()
    off = (numbers.double() * scales.double()[row] - values.double()).abs()
    assert (off <= 0.5001 * scales.double()[row]).all()
    for r in row.unique():
        largest = values[row == r].abs().max()
        if largest:
            assert numbers[row == r].abs().max() == LARGEST_INT8


def test_extreme_rows():
    crow = torch.tensor([0, 2, 2, 4]).int()
    numbers, scales = rounded(torch.tensor([0.0, 0.0, 1e-45, 3e38]), crow, torch.int8)
    assert numbers.tolist() == [0, 0, 0, 127]
    assert scales.isfinite().all()
    assert (scales > 0).all()
    for wrong in (float("nan"), float("inf"), -float("inf")):
        with pytest.raises(ValueError, match="no number for NaN and infinity"):
            rounded(torch.tensor([1.0, wrong, 1.0, 1.0]), crow, torch.int8)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("batch", [1, 3, 8, 11])
def test_bits_do_not_depend_on_threads(level, monkeypatch, kernel, batch):
    monkeypatch.setattr(native, "SERIAL_WORK", 0)
    prepared, values, _ = random_matrix(170, 300, 0.8, 3)
    x, before, results = torch.randn(batch, 300), torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(held(kernel, prepared, values).linear(x, torch.ones(170), "silu"))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(results[0], other) for other in results[1:])


@pytest.mark.parametrize("kernel", KERNELS)
def test_nan_and_infinity_reach_only_what_is_connected(level, kernel):
    mask = torch.zeros(32, 12, dtype=torch.bool)
    mask[:16, :4], mask[16:, 4:] = True, True
    prepared = of_mask(mask)
    made = held(kernel, prepared, torch.ones(prepared.kept))
    x = torch.ones(1, 12)
    x[0, 0], x[0, 7] = float("nan"), float("inf")
    y = made.linear(x)
    assert y[0, :16].isnan().all()
    assert (y[0, 16:] == float("inf")).all()


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("rows", "columns"), [(0, 5), (5, 0), (0, 0), (20, 7)])
def test_empty_matrices(level, kernel, rows, columns):
    prepared = of_mask(torch.zeros(rows, columns, dtype=torch.bool))
    y = held(kernel, prepared, torch.ones(0)).linear(torch.ones(2, columns), torch.full((rows,), 2.0))
    assert torch.equal(y, torch.full((2, rows), 2.0))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("dtype", [torch.int8, torch.bfloat16])
def test_the_twins_agree(monkeypatch, kernel, dtype):
    prepared, values, _ = random_matrix(50, 70, 0.8, 6)
    x, bias = torch.randn(3, 70), torch.randn(50)
    expected = held(kernel, prepared, values, dtype).linear(x, bias, "silu")
    monkeypatch.setattr(native, "enabled", lambda: False)
    y = held(kernel, prepared, values, dtype).linear(x, bias, "silu")
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_weight_takes_a_byte(kernel):
    mask = torch.zeros(64, 192, dtype=torch.bool)
    mask[:, :96] = True
    prepared = of_mask(mask)
    values = torch.randn(prepared.kept)
    whole, rounded_ = held(kernel, prepared, values, torch.float32), held(kernel, prepared, values)
    behind = {"slices": 0, "octets": 0, "squares": 0, "bitmask": 16, "row blocks": 64 * 16}[kernel]
    assert whole.nbytes - rounded_.nbytes == 3 * (prepared.kept + behind) - 4 * 64


def test_row_blocks_say_what_narrow_weights_are_for(level):
    prepared, values, _ = random_matrix(32, 20, 0.5, 1)
    arguments = (prepared.crow, prepared.col, values, prepared.shape)
    for height, batch in ((8, 1), (16, FEW), (2, 100)):
        with pytest.raises(ValueError, match="blocks of 16 rows and batches below 12"):
            row_blocks(*arguments, height, batch, torch.int8)
    with pytest.raises(TypeError, match=r"not torch\.float16"):
        row_blocks(*arguments, 16, 1, torch.float16)


@given(rows=SIZES, columns=SIZES, batch=st.integers(1, 13), seed=st.integers(0, 99))
def test_bfloat16_row_blocks(level, rows, columns, batch, seed):
    prepared, values, dense = random_matrix(rows, columns, 0.5, seed)
    x = torch.randn(batch, columns)
    y = held("row blocks", prepared, values, torch.bfloat16).linear(x)
    torch.testing.assert_close(y.double(), x.double() @ dense.bfloat16().double().T, rtol=1e-5, atol=5e-5)
