"""How a convolution is laid out for the native kernels: the grid, its bands and tiles (csrc/planes.h).

Images, or pixels of one image, lie side by side, so that whatever the shift of a tap its inputs are whole
vectors. Nothing here looks at weights; a geometry is made once for each size of image.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass
from functools import cached_property, lru_cache

import torch
from torch import Tensor

VECTOR = 16
"""Floats that a tap moves together: images or pixels side by side (csrc/planes.h)."""

TILES = (8, 7, 4)
"""Vectors that are computed together; the kernels are compiled for these."""

BAND_BYTES = 3 << 18
"""Inputs and outputs of a band, about: they should stay in the second-level cache."""

_COPY_COST = 1.5
"""What a row costs that is held once for each shift, against one that is held once."""

_TILE_COST = 2
"""What a nonzero costs in a tile besides its multiply-adds, one for each vector."""


@dataclass(frozen=True)
class Convolution:
    """What a convolution is besides its weights and the size of its images.

    Attributes:
        outputs: channels out.
        inputs: channels in.
        kernel: rows and columns of taps.
        stride: along rows and columns.
        padding: zeros on either side, along rows and columns.
    """

    outputs: int
    inputs: int
    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)

    @property
    def taps(self) -> int:
        """Taps of the kernel."""
        return self.kernel[0] * self.kernel[1]

    @property
    def matrix(self) -> tuple[int, int]:
        """Shape of the weight as a matrix, ``[out, in * rows * columns]``."""
        return self.outputs, self.inputs * self.taps

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the outputs for images of ``height`` x ``width``.

        Raises:
            ValueError: the padded image is smaller than the kernel.
        """
        padded = height + 2 * self.padding[0], width + 2 * self.padding[1]
        if padded[0] < self.kernel[0] or padded[1] < self.kernel[1]:
            raise ValueError(
                f"a kernel of {self.kernel[0]} x {self.kernel[1]} does not fit an image of "
                f"{padded[0]} x {padded[1]}, padding included"
            )
        rows, columns = ((p - k) // s + 1 for p, k, s in zip(padded, self.kernel, self.stride, strict=True))
        return rows, columns


@dataclass(frozen=True)
class Side:
    """One of the two tensors of a convolution on the common grid."""

    channels: int
    height: int
    width: int
    pixels: int
    row_stride: int = 1
    column_stride: int = 1
    row_phases: int = 1
    column_phases: int = 1
    row_pad: int = 0
    column_pad: int = 0


@dataclass(frozen=True)
class Geometry:
    """The numbers of csrc/planes.h, in the same order."""

    into: Side
    out: Side
    kernel: tuple[int, int]
    stride: tuple[int, int]
    backwards: bool
    first: tuple[int, int]
    grid: tuple[int, int]
    band: int
    tile: int
    grouped: bool
    as_is: bool

    @cached_property
    def numbers(self) -> Tensor:
        """All of them, int64."""
        return torch.tensor(_flat(astuple(self)), dtype=torch.int64)


@lru_cache(maxsize=1024)
def geometry(
    convolution: Convolution,
    size: tuple[int, int],
    *,
    grouped: bool,
    backwards: bool = False,
    blocked: bool = False,
) -> Geometry:
    """How images ``[images, in, *size]`` and the outputs of their convolution are laid on one grid.

    Args:
        convolution: its kernel, stride and padding.
        size: rows and columns of the images.
        grouped: 16 images side by side (csrc/grouped.h), instead of 16 pixels (csrc/strips.h).
        blocked: inputs or outputs lie in memory as the kernels have them (:mod:`openwork.kernels.blocked`).
        backwards: for ``dX`` from ``dY``; otherwise for ``Y`` from ``X``, and for ``dW`` from both.
    """
    kernel, stride, padding = convolution.kernel, convolution.stride, convolution.padding
    (height, width), (rows, columns) = size, convolution.size(*size)
    as_is = False
    if kernel == (1, 1) == stride and padding == (0, 0) and not blocked:
        # Every pixel for itself: an image of any shape will do, so take one that tiles divide.
        pixels = height * width
        tiles = [] if grouped else [tile * VECTOR for tile in TILES if pixels % (tile * VECTOR) == 0]
        as_is = bool(tiles)
        width = columns = (
            _tile(pixels) if grouped else max(tiles, default=_tile(-(-pixels // VECTOR)) * VECTOR)
        )
        height = rows = -(-pixels // width)
        into = Side(convolution.inputs, height, width, pixels)
        out = Side(convolution.outputs, height, width, pixels)
    else:
        # Backwards, pixels that no tap reaches have a gradient too: zero.
        phases = stride if backwards else (min(stride[0], kernel[0]), min(stride[1], kernel[1]))
        into = Side(convolution.inputs, height, width, height * width, *stride, *phases, *padding)
        out = Side(convolution.outputs, rows, columns, rows * columns)
    first, grid = (0, 0), (rows, columns)
    if backwards:
        into, out = out, into
        first = into_grid((0, 0), out)
        last = into_grid((height - 1, width - 1), out)
        grid = last[0] - first[0] + 1, last[1] - first[1] + 1
    reach = (kernel[0] - 1) // stride[0], (kernel[1] - 1) // stride[1]
    if grouped:
        tile = _tile(grid[1])
        out_vectors = -(-grid[1] // tile) * tile
        in_vectors = (out_vectors + reach[1]) * into.column_phases
    else:
        out_vectors = -(-grid[1] // VECTOR)
        tile = out_vectors if as_is else _tile(grid[0] * out_vectors)
        in_vectors = out_vectors * (reach[1] + 1 if backwards else kernel[1])
    # Bands overlap by the reach of the kernel, which is packed again for each.
    in_row = 4 * VECTOR * into.channels * into.row_phases * in_vectors
    out_row = 4 * VECTOR * out.channels * out.row_phases * out.column_phases * out_vectors
    band = (BAND_BYTES - reach[0] * in_row) // (in_row + out_row)
    band = min(grid[0], max(band, 2 * reach[0], 1))
    band = -(-grid[0] // -(-grid[0] // band))
    return Geometry(into, out, kernel, stride, backwards, first, grid, band, tile, grouped, as_is)


def into_grid(pixel: tuple[int, int], side: Side) -> tuple[int, int]:
    """Row and column of the grid where a pixel of ``side`` is."""
    return (pixel[0] + side.row_pad) // side.row_stride, (pixel[1] + side.column_pad) // side.column_stride


def group(convolution: Convolution, size: tuple[int, int], images: int) -> bool:
    """Whether to lay images side by side, or pixels: whichever computes less that nobody asked for."""
    if convolution.kernel == (1, 1) == convolution.stride and convolution.padding == (0, 0):
        return False  # pixels lie side by side as they come
    columns = convolution.size(*size)[1]
    idle_images = -(-images // VECTOR) * VECTOR / max(1, images)
    idle_pixels = -(-columns // VECTOR) * VECTOR / columns
    return idle_images <= _COPY_COST * idle_pixels


def _tile(vectors: int) -> int:
    return min(TILES, key=lambda tile: -(-vectors // tile) * (tile + _TILE_COST))


def _flat(value: object) -> list[int]:
    if isinstance(value, tuple):
        return [number for part in value for number in _flat(part)]
    assert isinstance(value, int)
    return [int(value)]
