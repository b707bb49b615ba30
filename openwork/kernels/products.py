"""The native products of a sparse matrix, on plain buffers: no autograd, no checks.

A walk is [col, runs, buckets, parts], and [..., permutation] if it is that of the transposed matrix: `index.Prepared`.
Activations are row-major [batch, features], or feature-major tiles [tiles, features, 64] (page `tiles`): axis 1 is the
features in both.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from openwork.kernels import native
from openwork.kernels.index import ALIGNMENT, TILE_WIDTH

ACTIVATIONS = ("none", "relu", "gelu", "gelu_tanh", "silu")
"""Activations that can be fused (activation.h has the same order)."""


def run_linear(
    x: Tensor,
    walk: list[Tensor],
    outputs: int,
    *,
    values: Tensor | None = None,
    words: Tensor | None = None,
    bias: Tensor | None = None,
    activation: str = "none",
    batch: int | None = None,
) -> Tensor:
    """The native forward kernel, with the weights as values or as a woven stream; `batch` as in `differentiable`."""
    col, runs, buckets, parts, *permutation = walk
    x = laid_out(x)
    values = None if values is None else values.contiguous()
    bias = None if bias is None else bias.contiguous()
    samples, inputs, tiled = _sizes(x)
    if batch is None:
        y = x.new_empty(x.shape[0], outputs, *x.shape[2:])
    else:
        samples, y = batch, x.new_empty(batch, outputs)
    native.kernels().sparse_linear(
        x.data_ptr(), y.data_ptr(), samples, inputs, outputs, _address(words), _address(values),
        _address(*permutation), _address(bias), ACTIVATIONS.index(activation), col.data_ptr(), col.numel(),
        runs.data_ptr(), buckets.data_ptr(), parts.data_ptr(), buckets.shape[0], buckets.shape[1], tiled,
        y.dim() == 3, native.threads((col.numel() + inputs + outputs) * samples),
    )  # fmt: skip
    return y


Wanted = tuple[bool, bool, bool]
"""Which gradients: of x, of the values, of the bias."""


def run_gradients(
    x: Tensor,
    dy: Tensor,
    walk: list[Tensor],
    wanted: Wanted,
    *,
    gate: Tensor | None = None,
    values: Tensor | None = None,
    transposed: Sequence[Tensor] = (),
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The native backward kernel: the gradients of x, values and bias, None where not wanted.

    Args:
        x: [batch, inputs] or tiles.
        dy: gradient of the outputs, [batch, outputs] or tiles.
        walk: that of the matrix.
        wanted: which gradients.
        gate: the outputs, if relu was applied to them: only where they are positive dy counts.
        values: for the gradient of x, as is the next.
        transposed: the walk of the transposed matrix.
    """
    col, runs, buckets, parts = walk
    x, dy = laid_out(x), laid_out(dy)
    (samples, inputs, tiled_x), (others, outputs, tiled_dy) = _sizes(x), _sizes(dy)
    samples = min(samples, others)  # rows tell how many of the samples in the tiles there are
    new = x.new_empty if samples else x.new_zeros
    dx = new(x.shape) if wanted[0] else None
    dvalues = new(col.numel()) if wanted[1] else None
    dbias = new(outputs) if wanted[2] else None
    other: tuple[int, ...] = (0,) * 8
    if values is not None and dx is not None:
        values = values.contiguous()
        t_col, t_runs, t_buckets, t_parts, permutation = transposed
        other = (
            values.data_ptr(), permutation.data_ptr(), t_col.data_ptr(), t_runs.data_ptr(), t_buckets.data_ptr(),
            t_parts.data_ptr(), t_buckets.shape[0], t_buckets.shape[1],
        )  # fmt: skip
    native.kernels().linear_gradients(
        x.data_ptr(), dy.data_ptr(), _address(gate), _address(dx), _address(dvalues), _address(dbias), samples,
        inputs, outputs, tiled_x, tiled_dy, col.data_ptr(), col.numel(), runs.data_ptr(), buckets.data_ptr(),
        parts.data_ptr(), buckets.shape[0], buckets.shape[1], *other,
        native.threads((col.numel() + inputs + outputs) * samples),
    )  # fmt: skip
    return dx, dvalues, dbias


def _sizes(x: Tensor) -> tuple[int, int, bool]:
    """(batch, features, whether x is tiles)."""
    tiled = x.dim() == 3
    return x.shape[0] * (TILE_WIDTH if tiled else 1), x.shape[1], tiled


def laid_out(x: Tensor) -> Tensor:
    """`x` as the kernels read it: contiguous, tiles also aligned to a cache line."""
    x = x.contiguous()
    return x.clone() if x.dim() == 3 and x.data_ptr() % ALIGNMENT else x


def _address(tensor: Tensor | None = None) -> int:
    return 0 if tensor is None else tensor.data_ptr()
