"""Images in blocks: 16 of them side by side, as convolutions of batches compute with them (csrc/grouped.h).

A tensor `[images, channels, rows, columns]` is `[blocks, rows, channels, columns, 16]` here; images that the last
block does not have are zeros, or what was computed from those. Whole networks keep images in this order from
layer to layer: nothing is transposed, and a band of rows is one stretch of memory.
"""

from __future__ import annotations

from torch import Tensor

from openwork.kernels import native
from openwork.kernels.planes import VECTOR

Pair = tuple[int, int]


def block_shape(shape: tuple[int, int, int, int]) -> tuple[int, int, int, int, int]:
    """The shape in blocks of images of a shape."""
    images, channels, rows, columns = shape
    return -(-images // VECTOR), rows, channels, columns, VECTOR


def size_of(x: Tensor) -> tuple[int, int]:
    """Rows and columns of images, in PyTorch's order or in blocks."""
    return (x.shape[1], x.shape[3]) if x.dim() == 5 else (x.shape[2], x.shape[3])


def block(x: Tensor) -> Tensor:
    """Images `[images, channels, rows, columns]` (float32, CPU) in blocks."""
    x = x.contiguous()
    images, channels, rows, columns = x.shape
    y = x.new_empty(block_shape((images, channels, rows, columns)))
    native.kernels().block_images(
        x.data_ptr(), y.data_ptr(), images, channels, rows, columns, native.threads(y.numel())
    )
    return y


def unblock(x: Tensor, images: int) -> Tensor:
    """The first `images` images of blocks, in PyTorch's order."""
    x = x.contiguous()
    _, rows, channels, columns, _ = x.shape
    y = x.new_empty(images, channels, rows, columns)
    native.kernels().unblock_images(
        x.data_ptr(), y.data_ptr(), images, channels, rows, columns, native.threads(x.numel())
    )
    return y


def pool(x: Tensor, y: Tensor, window: Pair, stride: Pair, padding: Pair, *, mean: bool) -> None:
    """The largest pixel under each window, or the mean of all, of blocks x into blocks y. Both are contiguous.

    Padding, less than a window, never counts for the largest; a mean has none.
    """
    number, rows, channels, columns, _ = x.shape
    native.kernels().pool_images(
        x.data_ptr(), y.data_ptr(), number, channels, rows, columns, y.shape[1], y.shape[3], *window, *stride,
        *padding, mean, native.threads(x.numel()),
    )  # fmt: skip


def pixel_mean(x: Tensor, images: int) -> Tensor:
    """The mean over the pixels of each channel, `[images, channels]`."""
    return x.mean((1, 3)).transpose(1, 2).reshape(-1, x.shape[2])[:images]
