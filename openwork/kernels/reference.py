"""Every kernel in a few lines of plain PyTorch: what it means, what it is tested against, and what runs for
other dtypes and devices.

The weight is made dense on the way (memory rows x columns while a call runs), and autograd does the rest. On
finite inputs a kernel and its twin agree to rounding; with NaN or infinity in an input they differ, because a
dense product also multiplies them by the zeros.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_weight

from openwork.kernels.index import TILE_WIDTH
from openwork.kernels.planes import Convolution


def activate(y: Tensor, activation: str) -> Tensor:
    """`none`, `relu`, `gelu` (exact), `gelu_tanh` or `silu`."""
    if activation == "relu":
        return F.relu(y)
    if activation == "gelu":
        return F.gelu(y)
    if activation == "gelu_tanh":
        return F.gelu(y, approximate="tanh")
    if activation == "silu":
        return F.silu(y)
    return y


def dense(values: Tensor, positions: Tensor, shape: tuple[int, int]) -> Tensor:
    """The dense [rows, columns] matrix of `values` [kept] at flat row-major `positions` [kept]."""
    return values.new_zeros(shape[0] * shape[1]).index_put((positions,), values).view(shape)


def sparse_linear(
    x: Tensor,
    values: Tensor,
    positions: Tensor,
    shape: tuple[int, int],
    bias: Tensor | None = None,
    activation: str = "none",
) -> Tensor:
    """`activation(x W^T + bias)`: x [..., columns] to [..., rows]."""
    return activate(F.linear(x, dense(values, positions, shape), bias), activation)


def weight_gradient(x: Tensor, dy: Tensor, positions: Tensor) -> Tensor:
    """`(dy^T x)` at flat `positions`: x [batch, columns], dy [batch, rows]."""
    return (dy.T @ x).flatten()[positions]


def largest(scores: Tensor, k: int) -> Tensor:
    """Boolean [n]: the k largest of scores [n], ties to the first, NaN as if minus infinity."""
    if scores.is_floating_point():
        scores = torch.where(scores.isnan(), -math.inf, scores)
    chosen = torch.zeros_like(scores, dtype=torch.bool)
    chosen[scores.sort(descending=True, stable=True).indices[:k]] = True
    return chosen


def pack_tiles(x: Tensor) -> Tensor:
    """[batch, features] to [ceil(batch / 64), features, 64], missing samples zero."""
    batch, features = x.shape
    tiles = -(-batch // TILE_WIDTH)
    padded = torch.cat([x, x.new_zeros(tiles * TILE_WIDTH - batch, features)])
    return padded.view(tiles, TILE_WIDTH, features).transpose(1, 2).contiguous()


def unpack_tiles(tiles: Tensor, batch: int) -> Tensor:
    """The inverse of `pack_tiles`."""
    return tiles.transpose(1, 2).reshape(-1, tiles.shape[1])[:batch].contiguous()


def sparse_conv(
    x: Tensor,
    values: Tensor,
    positions: Tensor,
    convolution: Convolution,
    bias: Tensor | None = None,
    activation: str = "none",
) -> Tensor:
    """`activation(conv(x, W) + bias)`: x [images, in, rows, columns] to [images, out, rows, columns]."""
    weight = dense(values, positions, convolution.matrix).unflatten(
        1, (convolution.inputs, *convolution.kernel)
    )
    y = F.conv2d(x, weight, bias, convolution.stride, convolution.padding)
    return activate(y, activation)


def conv_weight_gradient(x: Tensor, dy: Tensor, positions: Tensor, convolution: Convolution) -> Tensor:
    """The gradient of the weight at flat `positions`."""
    shape = (convolution.outputs, convolution.inputs, *convolution.kernel)
    gradient: Tensor = conv2d_weight(x, shape, dy, convolution.stride, convolution.padding)
    return gradient.flatten()[positions]
