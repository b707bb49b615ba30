import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from openwork.kernels import native
from openwork.kernels.linear import ACTIVATIONS
from openwork.kernels.small_batch import octet_rows
from tests.kernels.matrices import SIZES, SPARSITIES, random_matrix
from tests.kernels.test_linear import DENSE_ACTIVATION


def in_octets(rows, columns, sparsity, seed, dtype=torch.float32):
    prepared, values, dense = random_matrix(rows, columns, sparsity, seed)
    return octet_rows(values, prepared.crow, prepared.col, prepared.shape, dtype), dense


@pytest.mark.parametrize("activation", ACTIVATIONS)
@given(
    rows=SIZES, columns=SIZES, batch=st.integers(0, 40), sparsity=SPARSITIES, bias=st.booleans(),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_equals_the_dense_product(level, activation, rows, columns, batch, sparsity, bias, seed):
    octets, dense = in_octets(rows, columns, sparsity, seed)
    x = torch.randn(batch, columns)
    b = torch.randn(rows) if bias else None
    y = octets.linear(x, b, activation)
    expected = DENSE_ACTIVATION[activation](
        F.linear(x.double(), dense.double(), None if b is None else b.double())
    )
    torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=2e-5)


@given(rows=SIZES, columns=SIZES, batch=st.integers(1, 16), sparsity=SPARSITIES, seed=st.integers(0, 99))
def test_bfloat16_weights_are_rounded_and_nothing_else(level, rows, columns, batch, sparsity, seed):
    octets, dense = in_octets(rows, columns, sparsity, seed, torch.bfloat16)
    x = torch.randn(batch, columns)
    expected = F.linear(x.double(), dense.bfloat16().double())
    torch.testing.assert_close(octets.linear(x).double(), expected, rtol=1e-5, atol=2e-5)


@given(rows=SIZES, columns=SIZES, sparsity=SPARSITIES, seed=st.integers(0, 99))
def test_every_nonzero_is_held_once_and_padding_points_behind_the_inputs(rows, columns, sparsity, seed):
    octets, dense = in_octets(rows, columns, sparsity, seed)
    owner = torch.arange(rows).repeat_interleave(octets.ends.diff())[:, None].expand(-1, 8)
    held = octets.columns.long() < columns
    again = torch.zeros(rows, columns)
    again[owner[held], octets.columns.long()[held]] = octets.values[held]
    assert torch.equal(again, dense)
    assert int(held.sum()) == int((dense != 0).sum())
    assert torch.all(octets.values[~held] == 0)
    assert octets.ends.diff().tolist() == [-(-int(n) // 8) for n in (dense != 0).sum(1)]


@pytest.mark.parametrize("batch", [1, 2, 3, 4, 5, 8, 9, 16, 17])
def test_bits_do_not_depend_on_threads(level, monkeypatch, batch):
    monkeypatch.setattr(native, "SERIAL_WORK", 0)
    octets, _ = in_octets(170, 300, 0.8, 3)
    x, before, results = torch.randn(batch, 300), torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            results.append(octets.linear(x, activation="gelu"))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(results[0], other) for other in results[1:])


@pytest.mark.parametrize("batch", [1, 2, 3, 8, 16])
@pytest.mark.parametrize("inputs", [65535, 65536])
def test_wide_matrices(level, inputs, batch):
    col = torch.tensor([0, inputs - 1, 7, inputs - 2, inputs - 1], dtype=torch.int32)
    octets = octet_rows(
        torch.arange(1.0, 6.0), torch.tensor([0, 2, 2, 5], dtype=torch.int32), col, (3, inputs)
    )
    assert octets.columns.dtype == (torch.uint16 if inputs == 65535 else torch.int32)
    x = torch.zeros(batch, inputs)
    x[-1, [0, 7, inputs - 2, inputs - 1]] = torch.tensor([1.0, 10, 100, 1000])
    assert octets.linear(x)[-1].tolist() == [2001, 0, 5430]


@pytest.mark.parametrize("batch", [1, 2, 3, 8, 16])
def test_nan_and_infinity_reach_only_what_is_connected(level, batch):
    crow, col = torch.tensor([0, 2, 3, 4], dtype=torch.int32), torch.tensor([0, 2, 2, 1], dtype=torch.int32)
    octets = octet_rows(torch.ones(4), crow, col, (3, 3))
    x = torch.tensor([[float("nan"), float("inf"), 1.0]]).repeat(batch, 1)
    y = octets.linear(x)
    assert torch.equal(y.isnan(), y[:1].isnan().expand(batch, 3))
    assert y[0, 0].isnan()
    assert y[0, 1:].tolist() == [1, float("inf")]


@pytest.mark.parametrize(("rows", "columns"), [(0, 5), (5, 0), (0, 0)])
def test_empty_matrices(level, rows, columns):
    crow = torch.zeros(rows + 1, dtype=torch.int32)
    octets = octet_rows(torch.ones(0), crow, crow[:0], (rows, columns))
    y = octets.linear(torch.ones(2, columns), torch.full((rows,), 2.0))
    assert torch.equal(y, torch.full((2, rows), 2.0))


@pytest.mark.parametrize("shape", [(30,), (2, 3, 30), (0, 30)])
def test_leading_dimensions_and_strides(level, shape):
    octets, dense = in_octets(20, 30, 0.5, 5)
    x = torch.randn(*shape[:-1], 60)[..., ::2]
    y = octets.linear(x, torch.ones(40)[::2])
    torch.testing.assert_close(y, F.linear(x, dense) + 1, rtol=1e-5, atol=1e-5)


def test_the_twin_agrees_and_follows_the_same_rule_for_nan(monkeypatch):
    octets, _ = in_octets(50, 70, 0.8, 6)
    x, bias = torch.randn(3, 70), torch.randn(50)
    x[0, 3] = float("nan")
    native_result = octets.linear(x, bias, "silu")
    monkeypatch.setattr(native, "enabled", lambda: False)
    torch.testing.assert_close(
        octets.linear(x, bias, "silu"), native_result, rtol=1e-5, atol=1e-5, equal_nan=True
    )


def test_the_operator_is_sound_and_compiles():
    octets, _ = in_octets(20, 30, 0.5, 1)
    x = torch.randn(1, 30)
    torch.library.opcheck(
        torch.ops.openwork.small_batch_linear,
        (x, [octets.columns, octets.values, octets.ends, None], None, 20, "relu"),
    )
    compiled = torch.compile(lambda x: octets.linear(x) + 1, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), octets.linear(x) + 1)


def test_what_does_not_fit_is_refused():
    prepared, values, _ = random_matrix(20, 30, 0.5, 2)
    arguments = (prepared.crow, prepared.col, prepared.shape)
    with pytest.raises(TypeError, match=r"found torch\.float64"):
        octet_rows(values.double(), *arguments)
    with pytest.raises(TypeError, match=r"not torch\.float16"):
        octet_rows(values, *arguments, torch.float16)
    with pytest.raises(ValueError, match="values must be"):
        octet_rows(values[1:], *arguments)
    octets = octet_rows(values, *arguments)
    with pytest.raises(ValueError, match=r"x must be \[\.\.\., 30\]"):
        octets.linear(torch.zeros(1, 29))
    with pytest.raises(TypeError, match=r"x must be float32 on the CPU, found torch\.bfloat16"):
        octets.linear(torch.zeros(1, 30, dtype=torch.bfloat16))
    with pytest.raises(RuntimeError, match="no gradients"):
        octets.linear(torch.zeros(1, 30, requires_grad=True))
