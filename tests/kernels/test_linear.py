import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from openwork.kernels import linear, native
from openwork.kernels.linear import ACTIVATIONS, sparse_linear, weight_gradient
from tests.kernels.matrices import BATCHES, SIZES, SPARSITIES, of_mask, random_matrix

DENSE_ACTIVATION = {
    "none": lambda y: y,
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": lambda y: F.gelu(y, approximate="tanh"),
    "silu": F.silu,
}


@pytest.mark.parametrize("activation", ACTIVATIONS)
@given(
    rows=SIZES, columns=SIZES, batch=BATCHES, sparsity=SPARSITIES, bias=st.booleans(), seed=st.integers(0, 99)
)
def test_forward_equals_the_dense_product(level, activation, rows, columns, batch, sparsity, bias, seed):
    prepared, values, dense = random_matrix(rows, columns, sparsity, seed)
    x = torch.randn(batch, columns)
    b = torch.randn(rows) if bias else None
    y = sparse_linear(x, values, prepared, b, activation)
    expected = DENSE_ACTIVATION[activation](
        F.linear(x.double(), dense.double(), None if b is None else b.double())
    )
    torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=2e-5)


@given(rows=SIZES, columns=SIZES, batch=BATCHES, sparsity=SPARSITIES, seed=st.integers(0, 99))
def test_gradients_equal_the_dense_ones(level, rows, columns, batch, sparsity, seed):
    prepared, values, dense = random_matrix(rows, columns, sparsity, seed)
    x, b, dy = torch.randn(batch, columns), torch.randn(rows), torch.randn(batch, rows)
    inputs = [tensor.requires_grad_() for tensor in (x, values, b)]
    dx, dvalues, db = torch.autograd.grad(sparse_linear(x, values, prepared, b, "relu"), inputs, dy)
    live = F.linear(x.detach().double(), dense.double(), b.detach().double()) > 0
    dz = dy.double() * live
    # Where the argument of relu is zero to rounding either side is right.
    if torch.equal(live, sparse_linear(x, values, prepared, b) > 0):
        torch.testing.assert_close(dx.double(), dz @ dense.double(), rtol=1e-5, atol=1e-4)
        expected = (dz.T @ x.detach().double()).flatten()[prepared.positions]
        torch.testing.assert_close(dvalues.double(), expected, rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(db.double(), dz.sum(0), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh", "silu"])
def test_the_operator_itself_has_the_gradient_of_a_smooth_activation(level, activation):
    prepared, values, dense = random_matrix(20, 30, 0.5, 1)
    x = torch.randn(10, 30, requires_grad=True)
    transposed = prepared.transposed
    y = torch.ops.openwork.sparse_linear(x, values, None, prepared.walk, transposed, 20, activation)
    (dx,) = torch.autograd.grad(y.sum(), x)
    again = x.detach().double().requires_grad_()
    (expected,) = torch.autograd.grad(DENSE_ACTIVATION[activation](again @ dense.double().T).sum(), again)
    torch.testing.assert_close(dx.double(), expected, rtol=1e-4, atol=1e-4)


def test_second_derivatives_equal_the_dense_ones(level):
    prepared, values, _ = random_matrix(11, 17, 0.6, 2)
    x = torch.randn(5, 17)

    def curvature(y_of):
        v, inputs = values.clone().requires_grad_(), x.clone().requires_grad_()
        dv, dx = torch.autograd.grad(y_of(inputs, v).square().sum(), (v, inputs), create_graph=True)
        return torch.autograd.grad(dv.square().sum() + dx.square().sum(), (v, inputs))

    def dense(inputs, v):
        return inputs @ torch.zeros(11 * 17).index_put((prepared.positions,), v).view(11, 17).T

    for ours, expected in zip(
        curvature(lambda i, v: sparse_linear(i, v, prepared)), curvature(dense), strict=True
    ):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-2)


def test_bits_do_not_depend_on_threads_blocks_or_parts(level, monkeypatch):
    monkeypatch.setattr(native, "SERIAL_WORK", 0)
    before = torch.get_num_threads()
    x, dy = torch.randn(200, 300), torch.randn(200, 170)
    results = []
    try:
        for threads, block, parts in [(1, 300, 1), (2, 64, 2), (3, 17, 5), (5, 128, 3), (4, 1, 1)]:
            torch.set_num_threads(threads)
            monkeypatch.setattr("openwork.kernels.index.block_columns", lambda *_, block=block: block)
            monkeypatch.setattr("openwork.kernels.index.part_count", lambda _, parts=parts: parts)
            prepared, values, _ = random_matrix(170, 300, 0.8, 3)
            inputs = [x.requires_grad_(), values.requires_grad_()]
            y = sparse_linear(x, values, prepared, activation="gelu")
            results.append([y.detach(), *torch.autograd.grad(y, inputs, dy)])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_weight_gradient_of_a_batch_is_the_sum_of_its_parts(level):
    prepared, _, _ = random_matrix(50, 70, 0.7, 4)
    x, dy = torch.randn(100, 70), torch.randn(100, 50)
    parts = weight_gradient(x[:30], dy[:30], prepared) + weight_gradient(x[30:], dy[30:], prepared)
    torch.testing.assert_close(weight_gradient(x, dy, prepared), parts, rtol=1e-5, atol=1e-4)


def test_nan_reaches_only_what_is_connected(level):
    mask = torch.tensor([[True, False, True], [False, False, True], [False, True, False]])
    x = torch.tensor([[float("nan"), float("inf"), 1.0]])
    y = sparse_linear(x, torch.ones(4), of_mask(mask))
    assert y[0, 0].isnan()
    assert y[0, 1] == 1
    assert y[0, 2] == float("inf")


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_keep_nan_and_limits(level, activation):
    z = torch.tensor([[float("nan")], [1e30], [-1e30], [-90.0], [0.0], [5.0], [-5.0]])
    y = sparse_linear(z, torch.ones(1), of_mask(torch.ones(1, 1, dtype=torch.bool)), activation=activation)
    torch.testing.assert_close(y, DENSE_ACTIVATION[activation](z), rtol=1e-5, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize("shape", [(30,), (2, 3, 30), (0, 30), (4, 0, 30)])
def test_leading_dimensions_and_strides(level, shape):
    prepared, values, dense = random_matrix(20, 30, 0.5, 5)
    x = torch.randn(*shape[:-1], 60)[..., ::2]
    y = sparse_linear(x, values.repeat_interleave(2)[::2], prepared)
    assert y.shape == (*shape[:-1], 20)
    torch.testing.assert_close(y, F.linear(x, dense), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("rows", "columns"), [(0, 5), (5, 0), (0, 0)])
def test_empty_matrices(level, rows, columns):
    prepared = of_mask(torch.zeros(rows, columns, dtype=torch.bool))
    y = sparse_linear(torch.ones(3, columns), torch.ones(0), prepared, torch.full((rows,), 2.0))
    assert torch.equal(y, torch.full((3, rows), 2.0))


def test_float64_goes_through_the_reference_and_passes_gradcheck():
    prepared, values, _ = random_matrix(6, 9, 0.5, 6)
    inputs = (torch.randn(4, 9).double().requires_grad_(), values.double().requires_grad_())
    assert torch.autograd.gradcheck(lambda x, v: sparse_linear(x, v, prepared, None, "gelu"), inputs)


@pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor"
)  # of the checker itself, on newer versions of torch
@pytest.mark.parametrize("operator", ["sparse_linear", "weight_gradient"])
def test_operators_are_sound(operator):
    prepared, values, _ = random_matrix(20, 30, 0.5, 7)
    x, dy = torch.randn(6, 30, requires_grad=True), torch.randn(6, 20, requires_grad=True)
    values.requires_grad_()
    walks = (prepared.walk, prepared.transposed)
    if operator == "sparse_linear":
        for activation in ("none", "relu", "silu"):
            torch.library.opcheck(
                torch.ops.openwork.sparse_linear, (x, values, torch.zeros(20), *walks, 20, activation)
            )
    else:
        torch.library.opcheck(torch.ops.openwork.weight_gradient, (x, dy, *walks))


def test_compiles_as_one_graph():
    prepared, values, _ = random_matrix(40, 50, 0.8, 8)
    x, b = torch.randn(70, 50, requires_grad=True), torch.randn(40)
    values.requires_grad_()

    def step(x, values):
        return sparse_linear(x * 2, values, prepared, b, "relu").sum(1)

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    y, expected = compiled(x, values), step(x, values)
    torch.testing.assert_close(y, expected)
    for a, e in zip(
        torch.autograd.grad(y.sum(), (x, values)),
        torch.autograd.grad(expected.sum(), (x, values)),
        strict=True,
    ):
        torch.testing.assert_close(a, e)


def test_errors_say_what_was_found():
    prepared, values, _ = random_matrix(20, 30, 0.5, 9)
    x = torch.randn(2, 30)
    with pytest.raises(ValueError, match=r"x must be \[\.\.\., 30\].*found \[2, 29\]"):
        sparse_linear(x[:, :29], values, prepared)
    with pytest.raises(ValueError, match="values must be"):
        sparse_linear(x, values[:-1], prepared)
    with pytest.raises(ValueError, match="bias must be"):
        sparse_linear(x, values, prepared, torch.zeros(19))
    with pytest.raises(ValueError, match="activation 'swish' is not known"):
        sparse_linear(x, values, prepared, activation="swish")
    with pytest.raises(ValueError, match="dy"):
        linear.weight_gradient(x, torch.randn(3, 20), prepared)


def test_reference_mode_gives_the_same_numbers():
    code = """
import torch
from openwork.kernels import isa
from openwork.kernels.linear import prepare, sparse_linear
crow, col = torch.tensor([0, 1, 3], dtype=torch.int32), torch.tensor([1, 0, 2], dtype=torch.int32)
prepared = prepare(crow, col, (2, 3))
x = torch.tensor([[1.0, 2.0, 3.0]], requires_grad=True)
y = sparse_linear(x, torch.tensor([2.0, 3.0, 4.0]), prepared)
y.sum().backward()
print(isa(), y.tolist(), x.grad.tolist(), prepared.transposed[4].tolist())
"""
    printed = {}
    for flag in ("0", "1"):
        environment = {**os.environ, "OPENWORK_NATIVE": flag}
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
        )
        printed[flag] = done.stdout.split(maxsplit=1)
    assert printed["0"][0] == "reference"
    assert printed["0"][1] == printed["1"][1] == "[[4.0, 15.0]] [[3.0, 2.0, 4.0]] [1, 0, 2]\n"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("batch", [1, 5, 70])
def test_half_precision_is_computed_in_float32_and_rounded_once(level, dtype, batch):
    prepared, values, _ = random_matrix(40, 60, 0.6, 4)
    x, values, bias = torch.randn(batch, 60).to(dtype), values.to(dtype), torch.randn(40).to(dtype)
    wide = [t.float().requires_grad_() for t in (x, values, bias)]
    narrow = [t.clone().requires_grad_() for t in (x, values, bias)]
    expected = sparse_linear(wide[0], wide[1], prepared, wide[2], "relu")
    y = sparse_linear(narrow[0], narrow[1], prepared, narrow[2], "relu")
    assert y.dtype is dtype
    assert torch.equal(y, expected.to(dtype))
    dy = torch.randn(batch, 40).to(dtype)
    y.backward(dy)
    expected.backward(dy.float())
    for ours, theirs in zip(narrow, wide, strict=True):
        assert ours.grad.dtype is dtype
        assert torch.equal(ours.grad, theirs.grad.to(dtype))
    gradient = weight_gradient(x, dy, prepared)
    assert gradient.dtype is dtype
    assert torch.equal(gradient, weight_gradient(x.float(), dy.float(), prepared).to(dtype))


def test_half_precision_never_makes_the_dense_matrix(monkeypatch):
    prepared, values, _ = random_matrix(40, 60, 0.6, 4)
    monkeypatch.setattr("openwork.kernels.reference.dense", lambda *_: pytest.fail("densified"))
    sparse_linear(torch.randn(3, 60).bfloat16(), values.bfloat16(), prepared)
