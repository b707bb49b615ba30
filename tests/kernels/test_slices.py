import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from openwork.kernels import native
from openwork.kernels.linear import ACTIVATIONS
from openwork.kernels.slices import padded_entries, slice_rows
from tests.kernels.matrices import SIZES, SPARSITIES, random_matrix
from tests.kernels.test_linear import DENSE_ACTIVATION


def sliced(rows, columns, sparsity, seed, dtype=torch.float32):
    prepared, values, dense = random_matrix(rows, columns, sparsity, seed)
    return slice_rows(values, prepared.crow, prepared.col, prepared.shape, dtype), dense


@pytest.mark.parametrize("activation", ACTIVATIONS)
@given(
    rows=SIZES, columns=SIZES, batch=st.integers(0, 3), sparsity=SPARSITIES, bias=st.booleans(),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_equals_the_dense_product(level, activation, rows, columns, batch, sparsity, bias, seed):
    slices, dense = sliced(rows, columns, sparsity, seed)
    x = torch.randn(batch, columns)
    b = torch.randn(rows) if bias else None
    y = slices.linear(x, b, activation)
    expected = DENSE_ACTIVATION[activation](
        F.linear(x.double(), dense.double(), None if b is None else b.double())
    )
    torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=2e-5)


@given(rows=SIZES, columns=SIZES, sparsity=SPARSITIES, seed=st.integers(0, 99))
def test_bfloat16_weights_are_rounded_and_nothing_else(level, rows, columns, sparsity, seed):
    slices, dense = sliced(rows, columns, sparsity, seed, torch.bfloat16)
    x = torch.randn(1, columns)
    expected = F.linear(x.double(), dense.bfloat16().double())
    torch.testing.assert_close(slices.linear(x).double(), expected, rtol=1e-5, atol=2e-5)


@given(rows=SIZES, columns=SIZES, sparsity=SPARSITIES, seed=st.integers(0, 99))
def test_every_nonzero_is_held_once_and_padding_points_behind_the_inputs(rows, columns, sparsity, seed):
    slices, dense = sliced(rows, columns, sparsity, seed)
    owner = slices.rows.view(-1, 16).repeat_interleave(slices.ends.diff(), 0).long()
    held = slices.columns.long() < columns
    again = torch.zeros(rows, columns)
    again[owner[held], slices.columns.long()[held]] = slices.values[held]
    assert torch.equal(again, dense)
    assert int(held.sum()) == int((dense != 0).sum())
    assert torch.all(slices.values[~held] == 0)
    assert slices.values.numel() == padded_entries(torch.cat([torch.zeros(1), (dense != 0).sum(1).cumsum(0)]))


def test_constant_fan_in_needs_no_padding_and_keeps_the_order_of_rows():
    crow = torch.arange(33, dtype=torch.int32) * 3
    col = torch.stack([torch.randperm(50)[:3].sort().values for _ in range(32)]).flatten().int()
    slices = slice_rows(torch.randn(96), crow, col, (32, 50))
    assert slices.values.numel() == 96
    assert torch.equal(slices.rows, torch.arange(32, dtype=torch.int32))


def test_bits_do_not_depend_on_threads(level, monkeypatch):
    monkeypatch.setattr(native, "SERIAL_WORK", 0)
    slices, _ = sliced(170, 300, 0.8, 3)
    x, before, results = torch.randn(2, 300), torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            results.append(slices.linear(x, activation="gelu"))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(results[0], other) for other in results[1:])


@pytest.mark.parametrize("inputs", [65535, 65536])
def test_wide_matrices(level, inputs):
    col = torch.tensor([0, inputs - 1, 7, inputs - 2, inputs - 1], dtype=torch.int32)
    slices = slice_rows(
        torch.arange(1.0, 6.0), torch.tensor([0, 2, 2, 5], dtype=torch.int32), col, (3, inputs)
    )
    assert slices.columns.dtype == (torch.uint16 if inputs == 65535 else torch.int32)
    x = torch.zeros(1, inputs)
    x[0, [0, 7, inputs - 2, inputs - 1]] = torch.tensor([1.0, 10, 100, 1000])
    assert slices.linear(x).tolist() == [[2001, 0, 5430]]


def test_nan_and_infinity_reach_only_what_is_connected(level):
    crow, col = torch.tensor([0, 2, 3, 4], dtype=torch.int32), torch.tensor([0, 2, 2, 1], dtype=torch.int32)
    slices = slice_rows(torch.ones(4), crow, col, (3, 3))
    y = slices.linear(torch.tensor([[float("nan"), float("inf"), 1.0]]))
    assert y[0, 0].isnan()
    assert y[0, 1:].tolist() == [1, float("inf")]


@pytest.mark.parametrize(("rows", "columns"), [(0, 5), (5, 0), (0, 0)])
def test_empty_matrices(level, rows, columns):
    crow = torch.zeros(rows + 1, dtype=torch.int32)
    slices = slice_rows(torch.ones(0), crow, crow[:0], (rows, columns))
    y = slices.linear(torch.ones(2, columns), torch.full((rows,), 2.0))
    assert torch.equal(y, torch.full((2, rows), 2.0))


@pytest.mark.parametrize("shape", [(30,), (2, 3, 30), (0, 30)])
def test_leading_dimensions_and_strides(level, shape):
    slices, dense = sliced(20, 30, 0.5, 5)
    x = torch.randn(*shape[:-1], 60)[..., ::2]
    y = slices.linear(x, torch.ones(40)[::2])
    torch.testing.assert_close(y, F.linear(x, dense) + 1, rtol=1e-5, atol=1e-5)


def test_the_twin_agrees_and_follows_the_same_rule_for_nan(monkeypatch):
    slices, _ = sliced(50, 70, 0.8, 6)
    x, bias = torch.randn(3, 70), torch.randn(50)
    x[0, 3] = float("nan")
    native_result = slices.linear(x, bias, "silu")
    monkeypatch.setattr(native, "enabled", lambda: False)
    torch.testing.assert_close(
        slices.linear(x, bias, "silu"), native_result, rtol=1e-5, atol=1e-5, equal_nan=True
    )


def test_the_operator_is_sound_and_compiles():
    slices, _ = sliced(20, 30, 0.5, 1)
    x = torch.randn(1, 30)
    torch.library.opcheck(
        torch.ops.openwork.sliced_linear,
        (x, [slices.columns, slices.values, slices.ends, slices.rows, None], None, 20, "relu"),
    )
    compiled = torch.compile(lambda x: slices.linear(x) + 1, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), slices.linear(x) + 1)


def test_what_does_not_fit_is_refused():
    prepared, values, _ = random_matrix(20, 30, 0.5, 2)
    arguments = (prepared.crow, prepared.col, prepared.shape)
    with pytest.raises(TypeError, match=r"found torch\.float64"):
        slice_rows(values.double(), *arguments)
    with pytest.raises(TypeError, match=r"not torch\.float16"):
        slice_rows(values, *arguments, torch.float16)
    with pytest.raises(ValueError, match="values must be"):
        slice_rows(values[1:], *arguments)
    slices = slice_rows(values, *arguments)
    with pytest.raises(ValueError, match=r"x must be \[\.\.\., 30\]"):
        slices.linear(torch.zeros(1, 29))
    with pytest.raises(TypeError, match=r"x must be float32 on the CPU, found torch\.bfloat16"):
        slices.linear(torch.zeros(1, 30, dtype=torch.bfloat16))
    with pytest.raises(RuntimeError, match="no gradients"):
        slices.linear(torch.zeros(1, 30, requires_grad=True))
