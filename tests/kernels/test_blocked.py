"""Images in blocks: into that order and out of it, convolutions and poolings there, against PyTorch's own."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from openwork.kernels.blocked import block, block_shape, pixel_mean, pool, unblock
from openwork.kernels.conv import Convolution, prepare_conv
from openwork.kernels.frozen_conv import FrozenConv, freeze_conv
from openwork.layouts.csr import CSR

CASES = [
    (Convolution(7, 5, (3, 3), (1, 1), (1, 1)), (9, 13)),
    (Convolution(20, 33, (1, 1)), (7, 7)),
    (Convolution(6, 4, (1, 1), (2, 2)), (8, 5)),
    (Convolution(9, 3, (5, 2), (2, 3), (2, 1)), (12, 17)),
    (Convolution(18, 2, (3, 3), (2, 2), (1, 1)), (15, 32)),
]


def held(
    convolution: Convolution, *, grouped: bool = True, density: float = 0.3
) -> tuple[FrozenConv, Tensor]:
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(convolution.matrix, generator=generator)
    mask = torch.rand(weight.shape, generator=generator) < density
    mask[1] = False  # an output without inputs
    topology = CSR.from_mask(mask)
    prepared = prepare_conv(topology.crow, topology.col, convolution)
    dense = (weight * mask).view(convolution.outputs, convolution.inputs, *convolution.kernel)
    return freeze_conv(weight[mask], prepared, grouped=grouped), dense


def images(count: int, channels: int, size: tuple[int, int]) -> Tensor:
    return torch.randn(count, channels, *size, generator=torch.Generator().manual_seed(count))


@pytest.mark.parametrize("count", [1, 15, 16, 17, 40])
def test_blocks_and_back(level: str, count: int) -> None:
    x = images(count, 5, (3, 19))
    blocks = block(x)
    assert tuple(blocks.shape) == block_shape((count, 5, 3, 19)) == (-(-count // 16), 3, 5, 19, 16)
    assert torch.equal(unblock(blocks, count), x)
    assert torch.equal(blocks.permute(0, 4, 2, 1, 3).flatten(0, 1)[:count], x)
    assert not blocks.permute(0, 4, 2, 1, 3).flatten(0, 1)[count:].any()
    torch.testing.assert_close(pixel_mean(blocks, count), x.mean((2, 3)))


@pytest.mark.parametrize("count", [1, 16, 21])
@pytest.mark.parametrize(("convolution", "size"), CASES)
@pytest.mark.parametrize(
    "forms", ["blocks to blocks", "blocks to plain", "plain to blocks", "plain to plain"]
)
def test_convolutions(
    level: str, convolution: Convolution, size: tuple[int, int], count: int, forms: str
) -> None:
    frozen, weight = held(convolution)
    c, x = convolution, images(count, convolution.inputs, size)
    bias = torch.randn(c.outputs, generator=torch.Generator().manual_seed(9))
    carried = images(count, c.outputs, c.size(*size))
    expected = F.relu(F.conv2d(x, weight, bias, c.stride, c.padding) + carried)
    from_blocks, to_blocks = (form == "blocks" for form in forms.split(" to "))
    y = block(carried) if to_blocks else carried.clone()
    frozen.into(block(x) if from_blocks else x, y, count, bias, y, "relu")  # in place
    torch.testing.assert_close(unblock(y, count) if to_blocks else y, expected, rtol=1e-4, atol=1e-4)
    elsewhere = torch.full_like(y, torch.nan)
    again = block(carried) if to_blocks else carried
    frozen.into(block(x) if from_blocks else x, elsewhere, count, bias, again, "relu")
    assert torch.equal(elsewhere, y)


@pytest.mark.parametrize(("convolution", "size"), CASES)
def test_pixels_carry_too(level: str, convolution: Convolution, size: tuple[int, int]) -> None:
    frozen, weight = held(convolution, grouped=False)
    c, x = convolution, images(3, convolution.inputs, size)
    carried = images(3, c.outputs, c.size(*size))
    y = torch.empty_like(carried)
    frozen.into(x, y, 3, None, carried)
    expected = F.conv2d(x, weight, None, c.stride, c.padding) + carried
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)


def test_large_outputs_and_any_number_of_threads_give_the_same_bits(level: str) -> None:
    """Large ones are written past the caches."""
    convolution, size, count = Convolution(40, 3, (3, 3), (1, 1), (1, 1)), (60, 61), 33
    frozen, weight = held(convolution)
    x = block(images(count, 3, size))
    before, results = torch.get_num_threads(), []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        y = torch.full(block_shape((count, 40, *size)), torch.nan)
        frozen.into(x, y, count)
        results.append(y)
    torch.set_num_threads(before)
    assert results[0].nbytes > 16 << 20
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])
    expected = F.conv2d(unblock(x, count), weight, None, 1, 1)
    torch.testing.assert_close(unblock(results[0], count), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("mean", [False, True])
@pytest.mark.parametrize(
    ("window", "stride", "padding"),
    [((3, 3), (2, 2), (1, 1)), ((2, 3), (1, 4), (1, 0)), ((5, 1), (5, 1), (0, 0))],
)
def test_pooling(
    level: str, window: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int], mean: bool
) -> None:
    x = images(18, 4, (11, 14))
    x[2, 1, 3, 3], x[0, 0, 10, 13], x[1, 1, 0, 0] = torch.nan, torch.nan, torch.inf
    if mean:
        expected, padding = F.avg_pool2d(x, window, stride), (0, 0)
    else:
        expected = F.max_pool2d(x, window, stride, padding)
    y = torch.empty(block_shape((18, 4, *expected.shape[2:])))
    pool(block(x), y, window, stride, padding, mean=mean)
    torch.testing.assert_close(unblock(y, 18), expected, equal_nan=True)
