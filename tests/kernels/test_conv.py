"""Sparse convolutions against PyTorch's dense ones in float64, in both layouts, at every level."""

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given
from hypothesis import strategies as st

from openwork.kernels import conv_index, conv_operators, native, planes
from openwork.kernels.conv import Convolution, PreparedConv, conv_weight_gradient, prepare_conv, sparse_conv
from openwork.kernels.linear import ACTIVATIONS
from tests.kernels.test_linear import DENSE_ACTIVATION

KERNELS = st.sampled_from([(1, 1), (3, 3), (5, 5), (7, 7), (3, 1), (2, 3)])
STRIDES = st.sampled_from([(1, 1), (2, 2), (1, 2), (3, 3)])
PADDINGS = st.tuples(st.integers(0, 2), st.integers(0, 3))


@pytest.fixture(scope="module", params=["grouped", "strips"])
def layout(request: pytest.FixtureRequest) -> Iterator[str]:
    name: str = request.param
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(conv_operators, "group", lambda *_: name == "grouped")
        yield name


@st.composite
def problems(draw):
    convolution = Convolution(
        draw(st.integers(1, 33)), draw(st.integers(1, 20)), draw(KERNELS), draw(STRIDES), draw(PADDINGS)
    )
    images, height, width = (draw(st.integers(1, n)) for n in (17, 19, 35))
    sparsity, seed = draw(st.sampled_from([0.0, 0.5, 0.9, 1.0])), draw(st.integers(0, 99))
    for size, kernel, padding in zip((height, width), convolution.kernel, convolution.padding, strict=True):
        assume(size + 2 * padding >= kernel)
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(images, convolution.inputs, height, width, generator=generator)
    return convolution, x, *random_weight(convolution, sparsity, generator)


def random_weight(
    convolution: Convolution, sparsity: float, generator: torch.Generator
) -> tuple[PreparedConv, torch.Tensor, torch.Tensor]:
    """(topology, values [kept], dense [out, in, rows, columns])."""
    shape = (convolution.outputs, convolution.inputs, *convolution.kernel)
    mask = torch.rand(shape, generator=generator) >= sparsity
    if convolution.outputs > 2:
        mask[1] = False  # an output without inputs
    dense = torch.randn(shape, generator=generator) * mask
    flat = mask.flatten(1)
    crow = torch.zeros(convolution.outputs + 1, dtype=torch.int32)
    crow[1:] = flat.sum(1).cumsum(0)
    prepared = prepare_conv(crow, flat.nonzero()[:, 1].to(torch.int32), convolution)
    return prepared, dense[mask], dense


def dense_conv(x, weight, bias, convolution):
    return F.conv2d(x, weight, bias, convolution.stride, convolution.padding)


@given(problem=problems(), activation=st.sampled_from(ACTIVATIONS), bias=st.booleans())
def test_forward_equals_the_dense_convolution(level, layout, problem, activation, bias):
    convolution, x, prepared, values, dense = problem
    b = torch.randn(convolution.outputs) if bias else None
    y = sparse_conv(x, values, prepared, b, activation)
    z = dense_conv(x.double(), dense.double(), None if b is None else b.double(), convolution)
    torch.testing.assert_close(y.double(), DENSE_ACTIVATION[activation](z), rtol=1e-5, atol=1e-4)


@given(problem=problems())
def test_gradients_equal_the_dense_ones(level, layout, problem):
    convolution, x, prepared, values, dense = problem
    b = torch.randn(convolution.outputs)
    ours = [tensor.requires_grad_() for tensor in (x, values, b)]
    y = sparse_conv(x, values, prepared, b)
    dy = torch.randn_like(y)
    dx, dvalues, db = torch.autograd.grad(y, ours, dy)
    theirs = [tensor.detach().double().requires_grad_() for tensor in (x, dense, b)]
    ex, ew, eb = torch.autograd.grad(dense_conv(*theirs, convolution), theirs, dy.double())
    torch.testing.assert_close(dx.double(), ex, rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(dvalues.double(), ew.flatten()[prepared.positions], rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(db.double(), eb, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("size", [(56, 56), (40, 3), (3, 70)])
@pytest.mark.parametrize("stride", [(1, 1), (2, 2)])
def test_images_of_several_bands(level, layout, size, stride, monkeypatch):
    monkeypatch.setattr(planes, "BAND_BYTES", 1)
    planes.geometry.cache_clear()
    convolution = Convolution(9, 5, (3, 3), stride, (1, 1))
    prepared, values, dense = random_weight(convolution, 0.6, torch.Generator().manual_seed(1))
    x = torch.randn(18, 5, *size, requires_grad=True)
    values.requires_grad_()
    assert planes.geometry(convolution, size, grouped=layout == "grouped").band <= 4
    y = sparse_conv(x, values, prepared)
    weight, inputs = dense.double().requires_grad_(), x.detach().double().requires_grad_()
    expected = dense_conv(inputs, weight, None, convolution)
    torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=1e-4)
    dy = torch.randn_like(y)
    dx, dvalues = torch.autograd.grad(y, (x, values), dy)
    ex, ew = torch.autograd.grad(expected, (inputs, weight), dy.double())
    torch.testing.assert_close(dx.double(), ex, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(dvalues.double(), ew.flatten()[prepared.positions], rtol=1e-4, atol=1e-3)
    planes.geometry.cache_clear()


def test_bits_do_not_depend_on_threads_blocks_or_parts(level, layout, monkeypatch):
    monkeypatch.setattr(native, "SERIAL_WORK", 0)
    before = torch.get_num_threads()
    x = torch.randn(19, 12, 11, 13)
    convolution = Convolution(40, 12, (3, 3), (1, 1), (1, 1))
    dy, results = torch.randn(19, 40, 11, 13), []
    try:
        for threads, cache, parts in [(1, 1 << 20, 1), (2, 3000, 2), (3, 9000, 3), (5, 1, 1)]:
            torch.set_num_threads(threads)
            monkeypatch.setattr(conv_index, "FIRST_LEVEL_CACHE", cache)
            monkeypatch.setattr(conv_index, "part_count", lambda _, parts=parts: parts)
            prepared, values, _ = random_weight(convolution, 0.7, torch.Generator().manual_seed(3))
            inputs = [x.requires_grad_(), values.requires_grad_()]
            y = sparse_conv(x, values, prepared, activation="relu")
            results.append([y.detach(), *torch.autograd.grad(y, inputs, dy)])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_second_derivatives_equal_the_dense_ones(level):
    convolution = Convolution(5, 4, (3, 2), (2, 1), (1, 0))
    prepared, values, dense = random_weight(convolution, 0.5, torch.Generator().manual_seed(4))
    x = torch.randn(3, 4, 7, 6)

    def curvature(y_of, weight):
        w, inputs = weight.clone().requires_grad_(), x.clone().requires_grad_()
        dw, dx = torch.autograd.grad(y_of(inputs, w).square().sum(), (w, inputs), create_graph=True)
        dw = dw if dw.dim() == 1 else dw.flatten()[prepared.positions]
        return torch.autograd.grad(dw.square().sum() + dx.square().sum(), (w, inputs))

    ours = curvature(lambda i, v: sparse_conv(i, v, prepared), values)
    theirs = curvature(lambda i, w: dense_conv(i, w, None, convolution), dense)
    torch.testing.assert_close(ours[0], theirs[0].flatten()[prepared.positions], rtol=1e-4, atol=1e-1)
    torch.testing.assert_close(ours[1], theirs[1], rtol=1e-4, atol=1e-1)


def test_nan_reaches_only_what_is_connected(level, layout):
    convolution = Convolution(2, 2, (1, 1))
    prepared = prepare_conv(*(torch.tensor(t, dtype=torch.int32) for t in ([0, 1, 2], [0, 1])), convolution)
    x = torch.ones(2, 2, 3, 3)
    x[0, 0, 1, 1] = float("nan")
    y = sparse_conv(x, torch.ones(2), prepared)
    assert int(y.isnan().sum()) == 1
    assert y[0, 0, 1, 1].isnan()


def test_strides_of_tensors_and_no_images(level, layout):
    convolution = Convolution(4, 3, (3, 3), (1, 1), (1, 1))
    prepared, values, dense = random_weight(convolution, 0.5, torch.Generator().manual_seed(5))
    x = torch.randn(5, 3, 6, 7).to(memory_format=torch.channels_last)
    y = sparse_conv(x, values.repeat_interleave(2)[::2], prepared)
    torch.testing.assert_close(y, dense_conv(x, dense, None, convolution), rtol=1e-4, atol=1e-4)
    assert sparse_conv(x[:0], values, prepared).shape == (0, 4, 6, 7)
    assert torch.equal(
        conv_weight_gradient(x[:0], torch.zeros(0, 4, 6, 7), prepared), torch.zeros(prepared.kept)
    )


def test_float64_goes_through_the_reference_and_passes_gradcheck():
    convolution = Convolution(3, 2, (3, 3), (2, 2), (1, 1))
    prepared, values, _ = random_weight(convolution, 0.5, torch.Generator().manual_seed(6))
    inputs = (torch.randn(2, 2, 5, 4).double().requires_grad_(), values.double().requires_grad_())
    assert torch.autograd.gradcheck(lambda x, v: sparse_conv(x, v, prepared, None, "gelu"), inputs)


@pytest.mark.parametrize("operator", ["sparse_conv", "conv_input_gradient", "conv_weight_gradient"])
def test_operators_are_sound(operator):
    convolution = Convolution(6, 4, (3, 3), (2, 1), (1, 0))
    prepared, values, _ = random_weight(convolution, 0.5, torch.Generator().manual_seed(7))
    x, dy = torch.randn(3, 4, 9, 8, requires_grad=True), torch.randn(3, 6, 5, 6, requires_grad=True)
    values.requires_grad_()
    rest = (prepared.walk, prepared.transposed, [6, 4, 3, 3, 2, 1, 1, 0])
    arguments = {
        "sparse_conv": (x, values, torch.zeros(6), *rest, "relu"),
        "conv_input_gradient": (dy, values, *rest, 9, 8),
        "conv_weight_gradient": (x, dy, *rest),
    }
    torch.library.opcheck(getattr(torch.ops.openwork, operator), arguments[operator])


def test_compiles_as_one_graph():
    convolution = Convolution(6, 4, (3, 3), (1, 1), (1, 1))
    prepared, values, _ = random_weight(convolution, 0.5, torch.Generator().manual_seed(8))
    x = torch.randn(3, 4, 9, 8, requires_grad=True)
    values.requires_grad_()

    def step(x, values):
        return sparse_conv(x * 2, values, prepared, None, "relu").sum((1, 2, 3))

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    y, expected = compiled(x, values), step(x, values)
    torch.testing.assert_close(y, expected)
    ours, theirs = (torch.autograd.grad(out.sum(), (x, values)) for out in (y, expected))
    for a, e in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, e)


def test_errors_say_what_was_found():
    convolution = Convolution(4, 3, (3, 3))
    prepared, values, _ = random_weight(convolution, 0.5, torch.Generator().manual_seed(9))
    x = torch.randn(2, 3, 5, 5)
    with pytest.raises(ValueError, match=r"\[images, 3, rows, columns\], found \[2, 2, 5, 5\]"):
        sparse_conv(x[:, :2], values, prepared)
    with pytest.raises(ValueError, match="values must be"):
        sparse_conv(x, values[:-1], prepared)
    with pytest.raises(ValueError, match="bias must be"):
        sparse_conv(x, values, prepared, torch.zeros(5))
    with pytest.raises(ValueError, match="3 x 3 does not fit an image of 2 x 5"):
        sparse_conv(x[:, :, :2], values, prepared)
    with pytest.raises(ValueError, match=r"dy must be \[2, 4, 3, 3\]"):
        conv_weight_gradient(x, torch.zeros(2, 4, 5, 5), prepared)
