"""Convolutions with a sparse weight: `Y = activation(conv(X, W) + b)`, `dX`, and `dW` at the kept weights
only.

The weight is the matrix `[out, in * rows * columns]` in CSR form, as `weight.flatten(1)` has it. The gradients
are operators of their own (`conv_operators`), and all of them are one product (`conv_product`).

Images go through in their own order, `[images, channels, rows, columns]`; no copy per tap of the kernel is
made (pages csrc/planes.h, grouped.h, strips.h). Each output is one chain of fused multiply-adds in ascending
order of the weights, each weight's gradient is summed by one thread: results have the same bits for every
number of threads.
"""

from __future__ import annotations

import torch
from torch import Tensor

from openwork.kernels import reference
from openwork.kernels.conv_index import PreparedConv, prepare_conv
from openwork.kernels.conv_operators import numbers_of
from openwork.kernels.execution import is_native
from openwork.kernels.planes import Convolution
from openwork.kernels.products import ACTIVATIONS

__all__ = ["Convolution", "PreparedConv", "conv_weight_gradient", "prepare_conv", "sparse_conv"]


def sparse_conv(
    x: Tensor, values: Tensor, prepared: PreparedConv, bias: Tensor | None = None, activation: str = "none"
) -> Tensor:
    """`activation(conv(x, W) + bias)` for the sparse W of `values` at the topology of `prepared`.

    float32 on the CPU runs natively, anything else through `reference.sparse_conv`. Differentiable in x,
    values and bias, twice.

    Args:
        x: [images, in, rows, columns]; any strides.
        values: [kept], in CSR order.
        prepared: the topology, from `prepare_conv`.
        bias: [out].
        activation: one of `linear.ACTIVATIONS`.

    Returns:
        [images, out, rows, columns], contiguous.

    Raises:
        ValueError: shapes do not fit, or an unknown activation.
    """
    check_conv(x, prepared.convolution, bias, activation)
    if values.shape != prepared.col.shape:
        raise ValueError(
            f"values must be [{prepared.kept}], one for each kept weight, found {list(values.shape)}."
        )
    if not is_native(x, values, bias):
        return reference.sparse_conv(x, values, prepared.positions, prepared.convolution, bias, activation)
    training = torch.is_grad_enabled() and any(
        tensor is not None and tensor.requires_grad for tensor in (x, values, bias)
    )
    transposed = prepared.transposed if training and x.requires_grad else []
    # Smooth activations need their argument again in backward: it is kept, not recomputed.
    fused = "none" if training and activation not in ("none", "relu") else activation
    y: Tensor = torch.ops.openwork.sparse_conv(
        x, values, bias, prepared.walk, transposed, numbers_of(prepared.convolution), fused
    )
    return y if fused == activation else reference.activate(y, activation)


def conv_weight_gradient(x: Tensor, dy: Tensor, prepared: PreparedConv) -> Tensor:
    """The gradient of the weight at the nonzeros of `prepared`, in CSR order, [kept].

    Args:
        x: [images, in, rows, columns].
        dy: the gradient of the outputs, [images, out, rows, columns].
    """
    convolution = prepared.convolution
    check_conv(x, convolution, None, "none")
    expected = [x.shape[0], convolution.outputs, *convolution.size(*x.shape[2:])]
    if list(dy.shape) != expected:
        raise ValueError(f"dy must be {expected} for x {list(x.shape)}, found {list(dy.shape)}.")
    if not is_native(x, dy):
        return reference.conv_weight_gradient(x, dy, prepared.positions, convolution)
    transposed = prepared.transposed if torch.is_grad_enabled() and x.requires_grad else []
    gradient: Tensor = torch.ops.openwork.conv_weight_gradient(
        x, dy, prepared.walk, transposed, numbers_of(convolution)
    )
    return gradient


def check_conv(x: Tensor, convolution: Convolution, bias: Tensor | None, activation: str) -> None:
    """Raise ValueError unless x, bias and activation fit."""
    if x.dim() != 4 or x.shape[1] != convolution.inputs:
        raise ValueError(f"x must be [images, {convolution.inputs}, rows, columns], found {list(x.shape)}.")
    convolution.size(x.shape[2], x.shape[3])
    if bias is not None and (bias.dim() != 1 or bias.shape[0] != convolution.outputs):
        raise ValueError(f"bias must be [{convolution.outputs}], found {list(bias.shape)}.")
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation {activation!r} is not known; choose one of {', '.join(ACTIVATIONS)}.")
