import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from openwork.kernels import native
from openwork.kernels.linear import ACTIVATIONS
from openwork.kernels.pairs import MOST_INPUTS, available, pair_up, pairs_linear
from tests.kernels.matrices import BATCHES, SIZES, SPARSITIES, random_matrix
from tests.kernels.test_linear import DENSE_ACTIVATION

needed = pytest.mark.skipif(not available(), reason="this machine has no dot product of bfloat16")
DTYPES = (torch.float32, torch.bfloat16)


def pairs_of(rows, columns, sparsity, seed):
    prepared, values, dense = random_matrix(rows, columns, sparsity, seed)
    return pair_up(values, prepared.crow, prepared.col, prepared.shape), dense.bfloat16().double()


@needed
@pytest.mark.parametrize("activation", ACTIVATIONS)
@given(
    rows=SIZES, columns=SIZES, batch=BATCHES, sparsity=SPARSITIES, bias=st.booleans(), seed=st.integers(0, 99),
    dtype=st.sampled_from(DTYPES),
)  # fmt: skip
def test_rounds_inputs_and_weights_and_nothing_else(
    activation, rows, columns, batch, sparsity, bias, seed, dtype
):
    pairs, dense = pairs_of(rows, columns, sparsity, seed)
    x = torch.randn(batch, columns).to(dtype)
    b = torch.randn(rows) if bias else None
    y = pairs_linear(x, pairs, b, activation)
    assert y.dtype is dtype
    expected = DENSE_ACTIVATION[activation](
        F.linear(x.bfloat16().double(), dense, None if b is None else b.double())
    )
    if dtype is torch.bfloat16:
        torch.testing.assert_close(y.double(), expected, rtol=2**-8, atol=5e-5)  # the result is rounded once
    else:
        torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=5e-5)


@needed
@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.9])
def test_many_blocks_of_columns_and_long_runs(sparsity):
    pairs, dense = pairs_of(50, 1500, sparsity, 1)
    assert pairs.walk[1].shape[1] > 1
    x = torch.randn(70, 1500).bfloat16().float()
    torch.testing.assert_close(pairs_linear(x, pairs).double(), x.double() @ dense.T, rtol=1e-5, atol=2e-4)


@needed
@pytest.mark.parametrize("batch", [3, 40, 64, 150, 260])
def test_bits_do_not_depend_on_threads(monkeypatch, batch):
    monkeypatch.setattr(native, "SERIAL_WORK", 0)
    prepared, values, _ = random_matrix(170, 600, 0.8, 3)
    x, before, results = torch.randn(batch, 600), torch.get_num_threads(), []
    try:
        for threads, parts in [(1, 1), (2, 2), (3, 5), (5, 3)]:
            torch.set_num_threads(threads)
            monkeypatch.setattr("openwork.kernels.pairs.part_count", lambda _, parts=parts: parts)
            pairs = pair_up(values, prepared.crow, prepared.col, prepared.shape)
            results.append(pairs_linear(x, pairs, activation="gelu"))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(results[0], other) for other in results[1:])


@needed
@pytest.mark.parametrize("batch", [1, 33, 64, 100])
@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_and_infinity_reach_only_what_is_connected(batch, dtype):
    crow, col = torch.tensor([0, 2, 3, 4], dtype=torch.int32), torch.tensor([0, 2, 2, 1], dtype=torch.int32)
    pairs = pair_up(torch.ones(4), crow, col, (3, 3))
    x = torch.zeros(batch, 3, dtype=dtype)
    x[-1] = torch.tensor([float("nan"), float("inf"), 1.0])
    y = pairs_linear(x, pairs)
    assert not y[:-1].any()
    assert y[-1, 0].isnan()
    assert y[-1, 1:].tolist() == [1, float("inf")]


@needed
@pytest.mark.parametrize(("rows", "columns"), [(0, 5), (5, 0), (0, 0), (7, 9)])
@pytest.mark.parametrize("batch", [0, 2, 70])
def test_empty_matrices_and_batches(rows, columns, batch):
    crow = torch.zeros(rows + 1, dtype=torch.int32)
    pairs = pair_up(torch.ones(0), crow, crow[:0], (rows, columns))
    y = pairs_linear(torch.ones(batch, columns), pairs, torch.full((rows,), 2.0))
    assert torch.equal(y, torch.full((batch, rows), 2.0))


@needed
@pytest.mark.parametrize("shape", [(30,), (2, 3, 30), (0, 30), (4, 0, 30)])
def test_leading_dimensions_and_strides(shape):
    pairs, dense = pairs_of(20, 30, 0.5, 5)
    x = torch.randn(*shape[:-1], 60).bfloat16()[..., ::2]
    y = pairs_linear(x, pairs, torch.ones(40)[::2])
    assert y.shape == (*shape[:-1], 20)
    torch.testing.assert_close(y.double(), F.linear(x.double(), dense) + 1, rtol=2**-8, atol=1e-5)


@needed
def test_the_last_column_that_16_bits_name():
    crow, col = torch.tensor([0, 2, 3]).int(), torch.tensor([0, MOST_INPUTS - 1, MOST_INPUTS - 1]).int()
    x = torch.zeros(33, MOST_INPUTS)
    x[:, -1] = 2
    assert pairs_linear(x, pair_up(torch.ones(3), crow, col, (2, MOST_INPUTS)))[32].tolist() == [2, 2]
    with pytest.raises(ValueError, match="at most 65535 inputs"):
        pair_up(torch.ones(3), crow, col, (2, MOST_INPUTS + 1))


@needed
def test_the_operator_is_sound_and_compiles():
    pairs, _ = pairs_of(20, 30, 0.5, 1)
    x = torch.randn(5, 30)
    torch.library.opcheck(
        torch.ops.openwork.pairs_linear, (x, pairs.pairs, pairs.starts, pairs.walk, None, 20, "relu")
    )
    compiled = torch.compile(lambda x: pairs_linear(x, pairs) + 1, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), pairs_linear(x, pairs) + 1)


@needed
def test_what_does_not_fit_is_refused():
    prepared, values, _ = random_matrix(20, 30, 0.5, 2)
    arguments = (prepared.crow, prepared.col, prepared.shape)
    with pytest.raises(TypeError, match=r"found torch\.float64"):
        pair_up(values.double(), *arguments)
    with pytest.raises(ValueError, match="values must be"):
        pair_up(values[1:], *arguments)
    with pytest.raises(ValueError, match="columns must be"):
        pair_up(values, prepared.crow, prepared.col + 30, prepared.shape)
    pairs = pair_up(values, *arguments)
    with pytest.raises(ValueError, match=r"x must be \[\.\.\., 30\]"):
        pairs_linear(torch.zeros(1, 29), pairs)
    with pytest.raises(TypeError, match=r"found torch\.float64"):
        pairs_linear(torch.zeros(1, 30).double(), pairs)
    with pytest.raises(TypeError, match="bias must be float32"):
        pairs_linear(torch.zeros(1, 30), pairs, torch.zeros(20).bfloat16())
    with pytest.raises(RuntimeError, match="no gradients"):
        pairs_linear(torch.zeros(1, 30, requires_grad=True), pairs)


def test_other_levels_say_so(monkeypatch):
    monkeypatch.setattr(native, "kernels", lambda: native.library().portable)
    assert not available()
    with pytest.raises(RuntimeError, match="no bfloat16 dot product"):
        pair_up(torch.ones(0), torch.zeros(1).int(), torch.zeros(0).int(), (0, 0))
