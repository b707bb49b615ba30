import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from openwork.kernels import native
from openwork.kernels.linear import ACTIVATIONS
from openwork.kernels.squares import square_rows
from tests.kernels.matrices import SIZES, SPARSITIES, of_mask, random_matrix
from tests.kernels.test_linear import DENSE_ACTIVATION


def blocks(rows, columns, sparsity, seed, size=4):
    """Squares of a random block matrix, and the matrix."""
    generator = torch.Generator().manual_seed(seed)
    kept = torch.rand(-(-rows // size), -(-columns // size), generator=generator) >= sparsity
    mask = kept.repeat_interleave(size, 0).repeat_interleave(size, 1)[:rows, :columns]
    prepared = of_mask(mask)
    dense = torch.randn(rows, columns, generator=generator) * mask
    return square_rows(dense[mask], prepared.crow, prepared.col, prepared.shape), dense


@pytest.mark.parametrize("activation", ACTIVATIONS)
@given(
    rows=SIZES, columns=SIZES, batch=st.integers(0, 19), sparsity=SPARSITIES, bias=st.booleans(),
    seed=st.integers(0, 99), size=st.sampled_from([4, 8]),
)  # fmt: skip
def test_equals_the_dense_product(level, activation, rows, columns, batch, sparsity, bias, seed, size):
    squares, dense = blocks(rows, columns, sparsity, seed, size)
    x, b = torch.randn(batch, columns), torch.randn(rows) if bias else None
    y = squares.linear(x, b, activation)
    expected = DENSE_ACTIVATION[activation](
        F.linear(x.double(), dense.double(), None if b is None else b.double())
    )
    torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=2e-5)


@given(rows=SIZES, columns=SIZES, batch=st.integers(1, 9), sparsity=SPARSITIES, seed=st.integers(0, 99))
def test_any_topology_is_filled_up_to_squares(level, rows, columns, batch, sparsity, seed):
    prepared, values, dense = random_matrix(rows, columns, sparsity, seed)
    squares = square_rows(values, prepared.crow, prepared.col, prepared.shape)
    x = torch.randn(batch, columns)
    torch.testing.assert_close(
        squares.linear(x).double(), x.double() @ dense.double().T, rtol=1e-5, atol=2e-5
    )


def test_squares_by_hand():
    crow, col = torch.tensor([0, 2, 2, 2, 2, 3]).int(), torch.tensor([1, 4, 7]).int()
    squares = square_rows(torch.tensor([1.0, 2.0, 3.0]), crow, col, (5, 8))
    assert squares.columns.tolist() == [0, 1, 1]
    assert squares.ends.tolist() == [0, 2, 3]
    assert [value.nonzero().flatten().tolist() for value in squares.values] == [[1], [0], [3]]
    assert squares.nbytes == 3 * (2 + 64) + 3 * 8


@pytest.mark.parametrize("batch", [1, 2, 3, 5, 8, 13])
def test_bits_do_not_depend_on_threads_or_samples(level, monkeypatch, batch):
    monkeypatch.setattr(native, "SERIAL_WORK", 0)
    squares, _ = blocks(170, 301, 0.7, 3)
    x, before, results = torch.randn(batch, 301), torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            results.append(squares.linear(x, activation="gelu"))
        alone = torch.cat([squares.linear(row[None], activation="gelu") for row in x])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(results[0], other) for other in [*results[1:], alone])


@pytest.mark.parametrize("batch", [1, 2, 9])
def test_nan_and_infinity_reach_the_squares_that_have_their_column(level, batch):
    mask = torch.zeros(12, 12, dtype=torch.bool)
    mask[:4, 4:8], mask[8:, 8:] = True, True
    prepared = of_mask(mask)
    squares = square_rows(torch.ones(prepared.kept), prepared.crow, prepared.col, prepared.shape)
    for column, rows in ((0, []), (5, [0, 1, 2, 3]), (11, [8, 9, 10, 11])):
        for poison in (float("nan"), float("inf")):
            x = torch.zeros(batch, 12)
            x[-1, column] = poison
            y = squares.linear(x)
            assert (~y[-1].isfinite()).nonzero().flatten().tolist() == rows
            assert not y[:-1].any()


@pytest.mark.parametrize("shape", [(30,), (2, 3, 30), (0, 30), (4, 0, 30)])
def test_leading_dimensions_and_strides(level, shape):
    squares, dense = blocks(20, 30, 0.5, 5)
    x = torch.randn(*shape[:-1], 60)[..., ::2]
    y = squares.linear(x, torch.ones(40)[::2])
    torch.testing.assert_close(y, F.linear(x, dense) + 1, rtol=1e-5, atol=1e-5)


def test_more_columns_than_16_bits_name(level):
    columns = 4 * 65536 + 2
    crow, col = torch.tensor([0, 2]).int(), torch.tensor([0, columns - 1]).int()
    squares = square_rows(torch.tensor([1.0, 3.0]), crow, col, (1, columns))
    assert squares.columns.dtype == torch.int32
    x = torch.zeros(1, columns)
    x[0, 0], x[0, -1] = 1, 2
    assert squares.linear(x).tolist() == [[7.0]]


def test_the_operator_is_sound_and_compiles():
    squares, _ = blocks(20, 30, 0.5, 1)
    x = torch.randn(1, 30)
    held = [squares.columns, squares.values, squares.ends, None]
    torch.library.opcheck(torch.ops.openwork.squares_linear, (x, held, None, 20, "relu"))
    compiled = torch.compile(lambda x: squares.linear(x) + 1, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), squares.linear(x) + 1)


def test_what_does_not_fit_is_refused():
    prepared, values, _ = random_matrix(20, 30, 0.5, 2)
    arguments = (prepared.crow, prepared.col, prepared.shape)
    with pytest.raises(TypeError, match=r"found torch\.float64"):
        square_rows(values.double(), *arguments)
    with pytest.raises(TypeError, match=r"not torch\.float16"):
        square_rows(values, *arguments, torch.float16)
    with pytest.raises(ValueError, match="values must be"):
        square_rows(values[1:], *arguments)
    squares = square_rows(values, *arguments)
    with pytest.raises(ValueError, match=r"x must be \[\.\.\., 30\]"):
        squares.linear(torch.zeros(1, 29))
    with pytest.raises(RuntimeError, match="no gradients"):
        squares.linear(torch.zeros(1, 30, requires_grad=True))
