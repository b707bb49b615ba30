"""Convolutions with taps that several output channels share, against dense ones in float64, at every level."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from openwork.kernels import native, planes
from openwork.kernels.block_conv import HEIGHTS, block_conv, freeze_blocks
from openwork.kernels.blocked import block, block_shape, unblock
from openwork.kernels.conv_operators import numbers_of
from openwork.kernels.linear import ACTIVATIONS
from openwork.kernels.planes import Convolution
from tests.kernels.test_conv import KERNELS, PADDINGS, STRIDES, dense_conv
from tests.kernels.test_linear import DENSE_ACTIVATION


def shared(convolution: Convolution, height: int, sparsity: float, generator: torch.Generator):
    """(crow, col, values, dense weight) whose rows share taps in blocks of a height, but for some that are missing."""
    rows, columns = convolution.matrix
    mask = torch.rand(-(-rows // height), columns, generator=generator) >= sparsity
    mask = mask.repeat_interleave(height, 0)[:rows] & (torch.rand(rows, columns, generator=generator) < 0.95)
    crow = torch.zeros(rows + 1, dtype=torch.int32)
    crow[1:] = mask.sum(1).cumsum(0)
    weight = torch.randn(rows, columns, generator=generator) * mask
    shape = (rows, convolution.inputs, *convolution.kernel)
    return crow, mask.nonzero()[:, 1].int(), weight[mask], weight.view(shape)


@st.composite
def problems(draw):
    convolution = Convolution(
        draw(st.integers(1, 33)), draw(st.integers(1, 20)), draw(KERNELS), draw(STRIDES), draw(PADDINGS)
    )
    # Also sizes whose channels are whole tiles: 1 x 1 kernels read those as they are.
    size = draw(st.sampled_from([(7, 9), (11, 33), (8, 8), (16, 7), (16, 8), (19, 7)]))
    height, sparsity = draw(st.sampled_from(HEIGHTS)), draw(st.sampled_from([0.0, 0.7, 1.0]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    x = torch.randn(draw(st.integers(1, 17)), convolution.inputs, *size, generator=generator)
    return convolution, x, height, *shared(convolution, height, sparsity, generator)


@pytest.mark.parametrize("grouped", [False, True])
@given(problem=problems(), activation=st.sampled_from(ACTIVATIONS))
def test_it_equals_the_dense_convolution(level, grouped, problem, activation):
    convolution, x, height, crow, col, values, dense = problem
    bias = torch.randn(convolution.outputs)
    held = freeze_blocks(crow, col, values, convolution, height, grouped=grouped)
    values.zero_()  # frozen weights do not follow
    z = dense_conv(x.double(), dense.double(), bias.double(), convolution)
    y = block_conv(x, held, bias, activation)
    torch.testing.assert_close(y.double(), DENSE_ACTIVATION[activation](z), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("in_blocks", [False, True])
@pytest.mark.parametrize("kernel", [(1, 1), (3, 3)])
def test_what_is_carried_may_be_where_the_outputs_go(level, in_blocks, kernel):
    convolution = Convolution(22, 9, kernel, (1, 1), (kernel[0] // 2, kernel[1] // 2))
    generator = torch.Generator().manual_seed(1)
    crow, col, values, dense = shared(convolution, 4, 0.6, generator)
    held = freeze_blocks(crow, col, values, convolution, 4, grouped=in_blocks)
    x, carried = torch.randn(3, 9, 8, 8, generator=generator), torch.randn(3, 22, 8, 8, generator=generator)
    expected = (dense_conv(x.double(), dense.double(), None, convolution) + carried).relu()
    y = block(carried) if in_blocks else carried.clone()
    assert not in_blocks or y.shape == block_shape((3, 22, 8, 8))
    held.into(block(x) if in_blocks else x, y, 3, None, y, "relu")
    found = unblock(y, 3) if in_blocks else y
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-4)


def test_channels_behind_the_last_block_are_not_written(level):
    convolution = Convolution(6, 5, (1, 1))  # channels of 8 x 8 are computed where they go, if blocks fit
    crow, col, values, dense = shared(convolution, 4, 0.3, torch.Generator().manual_seed(2))
    held = freeze_blocks(crow, col, values, convolution, 4, grouped=False)
    x, room = torch.randn(1, 5, 8, 8), torch.full((1, 8, 8, 8), 3.0)
    held.into(x, room[:, :6], 1)
    torch.testing.assert_close(room[:, :6], dense_conv(x, dense, None, convolution), rtol=1e-5, atol=1e-4)
    assert (room[:, 6:] == 3.0).all()


def test_bits_do_not_depend_on_threads_or_bands(level, monkeypatch):
    monkeypatch.setattr(native, "SERIAL_WORK", 0)
    before = torch.get_num_threads()
    convolution = Convolution(40, 12, (3, 3), (1, 1), (1, 1))
    weight = shared(convolution, 8, 0.7, torch.Generator().manual_seed(3))[:3]
    x, found = torch.randn(19, 12, 11, 13), []
    try:
        for threads, band in [(1, 1 << 20), (2, 1), (3, 30_000)]:
            torch.set_num_threads(threads)
            monkeypatch.setattr(planes, "BAND_BYTES", band)
            planes.geometry.cache_clear()
            found.append(block_conv(x, freeze_blocks(*weight, convolution, 8, grouped=False)))
    finally:
        torch.set_num_threads(before)
        planes.geometry.cache_clear()
    assert all(torch.equal(found[0], y) for y in found)


def test_the_operator_is_sound():
    convolution = Convolution(6, 4, (3, 3), (2, 2), (1, 1))
    crow, col, values, _ = shared(convolution, 2, 0.5, torch.Generator().manual_seed(4))
    held = freeze_blocks(crow, col, values, convolution, 2, grouped=True)
    arguments = held.arrays_for((6, 7)), numbers_of(convolution), 2, held.groups.blocks, True, "relu"
    torch.library.opcheck(torch.ops.openwork.block_conv, (torch.randn(2, 4, 6, 7), None, *arguments))


def test_what_cannot_be_held_or_computed_is_refused():
    convolution = Convolution(5, 4, (1, 1))
    crow, col, values, _ = shared(convolution, 2, 0.5, torch.Generator().manual_seed(5))
    with pytest.raises(ValueError, match="blocks have 2, 4, 8 output channels, not 3"):
        freeze_blocks(crow, col, values, convolution, 3, grouped=False)
    with pytest.raises(TypeError, match="float32"):
        freeze_blocks(crow, col, values.double(), convolution, 2, grouped=False)
    held = freeze_blocks(crow, col, values, convolution, 2, grouped=False)
    with pytest.raises(TypeError, match=r"found torch\.float64"):
        block_conv(torch.zeros(1, 4, 2, 2).double(), held)
    with pytest.raises(RuntimeError, match="no gradients"):
        block_conv(torch.zeros(1, 4, 2, 2, requires_grad=True), held)
