import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from openwork.kernels import native
from openwork.kernels.bitmasked import bitmask_rows, positions
from openwork.kernels.linear import ACTIVATIONS
from tests.kernels.matrices import SIZES, SPARSITIES, random_matrix
from tests.kernels.test_linear import DENSE_ACTIVATION


def bits_of(rows, columns, sparsity, seed, dtype=torch.float32):
    prepared, values, dense = random_matrix(rows, columns, sparsity, seed)
    return bitmask_rows(values, prepared.crow, prepared.col, prepared.shape, dtype), dense


@pytest.mark.parametrize("activation", ACTIVATIONS)
@given(
    rows=SIZES, columns=SIZES, batch=st.integers(0, 14), sparsity=SPARSITIES, bias=st.booleans(),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_equals_the_dense_product(level, activation, rows, columns, batch, sparsity, bias, seed):
    bits, dense = bits_of(rows, columns, sparsity, seed)
    x = torch.randn(batch, columns)
    b = torch.randn(rows) if bias else None
    y = bits.linear(x, b, activation)
    expected = DENSE_ACTIVATION[activation](
        F.linear(x.double(), dense.double(), None if b is None else b.double())
    )
    torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=2e-5)


@given(rows=SIZES, columns=SIZES, batch=st.integers(1, 7), sparsity=SPARSITIES, seed=st.integers(0, 99))
def test_bfloat16_weights_are_rounded_and_nothing_else(level, rows, columns, batch, sparsity, seed):
    bits, dense = bits_of(rows, columns, sparsity, seed, torch.bfloat16)
    x = torch.randn(batch, columns)
    expected = F.linear(x.double(), dense.bfloat16().double())
    torch.testing.assert_close(bits.linear(x).double(), expected, rtol=1e-5, atol=2e-5)


@given(rows=SIZES, columns=SIZES, sparsity=SPARSITIES, seed=st.integers(0, 99))
def test_every_kept_position_has_a_bit_and_the_value_of_its_place(rows, columns, sparsity, seed):
    bits, dense = bits_of(rows, columns, sparsity, seed)
    row, column = positions(bits.masks)
    again = torch.zeros(rows, columns)
    again[row, column] = bits.values[: row.numel()]
    assert torch.equal(again, dense)
    assert row.numel() == int((dense != 0).sum())
    assert bits.first.tolist() == [int((row < 4 * group).sum()) for group in range(-(-rows // 4) + 1)]


def test_bits_by_hand():
    crow, col = torch.tensor([0, 2, 2, 2, 3, 4], dtype=torch.int32), torch.tensor([0, 17, 15, 3]).int()
    bits = bitmask_rows(torch.arange(1.0, 5.0), crow, col, (5, 20))
    assert bits.masks.tolist() == [[1 - 2**63, 2], [8, 0]]
    assert bits.values[:4].tolist() == [1, 3, 2, 4]
    assert bits.first.tolist() == [0, 3, 4]


@pytest.mark.parametrize("batch", [1, 2, 3, 4, 5, 6, 7])
def test_bits_do_not_depend_on_threads(level, monkeypatch, batch):
    monkeypatch.setattr(native, "SERIAL_WORK", 0)
    bits, _ = bits_of(170, 300, 0.8, 3)
    x, before, results = torch.randn(batch, 300), torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            results.append(bits.linear(x, activation="gelu"))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(results[0], other) for other in results[1:])


@pytest.mark.parametrize("batch", [1, 2, 3, 4, 5, 6, 7])
def test_nan_and_infinity_reach_only_what_is_connected(level, batch):
    crow, col = torch.tensor([0, 2, 3, 4], dtype=torch.int32), torch.tensor([0, 2, 2, 1], dtype=torch.int32)
    bits = bitmask_rows(torch.ones(4), crow, col, (3, 3))
    x = torch.tensor([[float("nan"), float("inf"), 1.0]]).repeat(batch, 1)
    y = bits.linear(x)
    assert torch.equal(y.isnan(), y[:1].isnan().expand(batch, 3))
    assert y[0, 0].isnan()
    assert y[0, 1:].tolist() == [1, float("inf")]


@pytest.mark.parametrize(("rows", "columns"), [(0, 5), (5, 0), (0, 0)])
def test_empty_matrices(level, rows, columns):
    crow = torch.zeros(rows + 1, dtype=torch.int32)
    bits = bitmask_rows(torch.ones(0), crow, crow[:0], (rows, columns))
    y = bits.linear(torch.ones(2, columns), torch.full((rows,), 2.0))
    assert torch.equal(y, torch.full((2, rows), 2.0))


@pytest.mark.parametrize("shape", [(30,), (2, 3, 30), (0, 30)])
def test_leading_dimensions_and_strides(level, shape):
    bits, dense = bits_of(20, 30, 0.5, 5)
    x = torch.randn(*shape[:-1], 60)[..., ::2]
    y = bits.linear(x, torch.ones(40)[::2])
    torch.testing.assert_close(y, F.linear(x, dense) + 1, rtol=1e-5, atol=1e-5)


def test_the_twin_agrees_and_follows_the_same_rule_for_nan(monkeypatch):
    bits, _ = bits_of(50, 70, 0.8, 6)
    x, bias = torch.randn(3, 70), torch.randn(50)
    x[0, 3] = float("nan")
    native_result = bits.linear(x, bias, "silu")
    monkeypatch.setattr(native, "enabled", lambda: False)
    torch.testing.assert_close(
        bits.linear(x, bias, "silu"), native_result, rtol=1e-5, atol=1e-5, equal_nan=True
    )


def test_the_operator_is_sound_and_compiles():
    bits, _ = bits_of(20, 30, 0.5, 1)
    x = torch.randn(1, 30)
    torch.library.opcheck(
        torch.ops.openwork.bitmasked_linear,
        (x, [bits.masks, bits.values, bits.first, None], None, 20, "relu"),
    )
    compiled = torch.compile(lambda x: bits.linear(x) + 1, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), bits.linear(x) + 1)


def test_what_does_not_fit_is_refused():
    prepared, values, _ = random_matrix(20, 30, 0.5, 2)
    arguments = (prepared.crow, prepared.col, prepared.shape)
    with pytest.raises(TypeError, match=r"found torch\.float64"):
        bitmask_rows(values.double(), *arguments)
    with pytest.raises(TypeError, match=r"not torch\.float16"):
        bitmask_rows(values, *arguments, torch.float16)
    with pytest.raises(ValueError, match="values must be"):
        bitmask_rows(values[1:], *arguments)
    bits = bitmask_rows(values, *arguments)
    with pytest.raises(ValueError, match=r"x must be \[\.\.\., 30\]"):
        bits.linear(torch.zeros(1, 29))
    with pytest.raises(TypeError, match=r"x must be float32 on the CPU, found torch\.bfloat16"):
        bits.linear(torch.zeros(1, 30, dtype=torch.bfloat16))
    with pytest.raises(RuntimeError, match="no gradients"):
        bits.linear(torch.zeros(1, 30, requires_grad=True))
