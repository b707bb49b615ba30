"""Convolutions that keep channels apart, against PyTorch's in float64, in both orders of memory, at every level."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given
from hypothesis import strategies as st

from openwork.kernels import native
from openwork.kernels.blocked import block, block_shape, unblock
from openwork.kernels.depthwise import bind_depthwise, depthwise_conv
from openwork.kernels.linear import ACTIVATIONS
from openwork.kernels.planes import Convolution
from tests.kernels.test_linear import DENSE_ACTIVATION

# Squares of 3 and 5 with strides 1 and 2 are compiled for themselves, others are not.
KERNELS = st.sampled_from([(3, 3), (5, 5), (7, 7), (1, 1), (2, 3), (4, 1)])
STRIDES = st.sampled_from([(1, 1), (2, 2), (1, 2), (3, 3)])


@st.composite
def problems(draw):
    inputs, per_input = draw(st.integers(1, 11)), draw(st.integers(1, 3))
    padding = draw(st.tuples(st.integers(0, 3), st.integers(0, 4)))
    convolution = Convolution(inputs * per_input, inputs, draw(KERNELS), draw(STRIDES), padding)
    images, height, width = (draw(st.integers(1, n)) for n in (17, 19, 37))
    for size, kernel, pad in zip((height, width), convolution.kernel, padding, strict=True):
        assume(size + 2 * pad >= kernel)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    x = torch.randn(images, inputs, height, width, generator=generator)
    weight = torch.randn(convolution.outputs, 1, *convolution.kernel, generator=generator)
    return convolution, x, weight


def dense(x, weight, bias, c):
    return F.conv2d(x, weight, bias, c.stride, c.padding, groups=c.inputs)


@given(problem=problems(), activation=st.sampled_from(ACTIVATIONS), bias=st.booleans())
def test_it_equals_the_convolution_in_groups(level, problem, activation, bias):
    c, x, weight = problem
    b = torch.randn(c.outputs) if bias else None
    y = depthwise_conv(x, weight, c, b, activation)
    z = dense(x.double(), weight.double(), None if b is None else b.double(), c)
    torch.testing.assert_close(y.double(), DENSE_ACTIVATION[activation](z), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("in_blocks", [False, True])
@given(problem=problems())
def test_what_is_carried_may_be_where_the_outputs_go(level, in_blocks, problem):
    c, x, weight = problem
    bias = torch.randn(c.outputs)
    expected = dense(x.double(), weight.double(), bias.double(), c)
    carried = torch.randn(expected.shape)
    to, inputs = (block(carried), block(x)) if in_blocks else (carried.clone(), x)
    bind_depthwise(inputs, to, weight, c, bias, to, "relu")()
    found = unblock(to, x.shape[0]) if in_blocks else to
    torch.testing.assert_close(found.double(), (expected + carried).relu(), rtol=1e-5, atol=1e-4)


def test_nothing_is_read_from_beyond_an_image(level):
    c = Convolution(3, 3, (3, 3), (1, 1), (1, 1))
    weight, around = torch.ones(3, 1, 3, 3), torch.full((5, 3, 6, 9), torch.nan)
    around[2] = 1.0
    y = depthwise_conv(around[2:3], weight, c)
    assert y[0, :, 1:-1, 1:-1].unique().tolist() == [9.0]
    assert y[0, :, 0, 0].unique().tolist() == [4.0]


def test_bits_do_not_depend_on_threads(level, monkeypatch):
    monkeypatch.setattr(native, "SERIAL_WORK", 0)
    before = torch.get_num_threads()
    c, x, weight = (
        Convolution(26, 13, (3, 3), (2, 2), (1, 1)),
        torch.randn(3, 13, 17, 35),
        torch.randn(26, 1, 3, 3),
    )
    found = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            y = torch.empty(block_shape((3, 26, 9, 18)))
            bind_depthwise(block(x), y, weight, c, None, None, "silu")()
            found += [depthwise_conv(x, weight, c, None, "silu"), unblock(y, 3)]
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(found[0], y) for y in found[2::2])
    assert all(torch.equal(found[1], y) for y in found[3::2])


def test_other_dtypes_are_pytorchs():
    c, x, weight = (
        Convolution(4, 4, (3, 3)),
        torch.randn(2, 4, 5, 6).double(),
        torch.randn(4, 1, 3, 3).double(),
    )
    assert torch.equal(depthwise_conv(x, weight, c, None, "relu"), dense(x, weight, None, c).relu())


def test_what_does_not_fit_is_refused():
    c, x, weight = Convolution(4, 4, (3, 3)), torch.zeros(1, 4, 5, 5), torch.zeros(4, 1, 3, 3)
    with pytest.raises(ValueError, match=r"x must be \[images, 4"):
        depthwise_conv(x[:, :3], weight, c)
    with pytest.raises(ValueError, match="weight must be"):
        depthwise_conv(x, weight[:, :, :2], c)
    with pytest.raises(ValueError, match="bias must be"):
        depthwise_conv(x, weight, c, torch.zeros(3))
    with pytest.raises(ValueError, match="is not known"):
        depthwise_conv(x, weight, c, None, "mish")
    with pytest.raises(ValueError, match="does not fit"):
        depthwise_conv(x[:, :, :2], weight, c)
    with pytest.raises(RuntimeError, match="no gradients"):
        depthwise_conv(x.requires_grad_(), weight, c)
