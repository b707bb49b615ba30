"""Convolutions that keep channels apart, for inference: each output channel sees one input channel.

Their weights are few and dense; what takes the time is that every pixel is read and written. So they work on
images as the sparse convolutions around them have them, in PyTorch's order or in blocks (`blocked`), and apply
bias, a shortcut and the activation on the way out. Each output is one chain of multiply-adds in the order of
the taps: results have the same bits for every number of threads.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from openwork.kernels import native, reference
from openwork.kernels.blocked import size_of
from openwork.kernels.conv_product import Bound
from openwork.kernels.planes import Convolution
from openwork.kernels.products import ACTIVATIONS


def depthwise_conv(
    x: Tensor, weight: Tensor, convolution: Convolution, bias: Tensor | None = None, activation: str = "none"
) -> Tensor:
    """`activation(conv(x, W) + bias)` with a group for each input channel, without gradients.

    float32 on the CPU runs natively, anything else through PyTorch.

    Args:
        x: [images, in, rows, columns]; any strides.
        weight: [out, 1, rows, columns], with out a multiple of in.
        convolution: its channels, kernel, stride and padding.
        bias: [out].
        activation: one of `linear.ACTIVATIONS`.

    Returns:
        [images, out, rows, columns], contiguous.

    Raises:
        ValueError: shapes do not fit, or an unknown activation.
        RuntimeError: a gradient would be needed.
    """
    c = convolution
    if x.dim() != 4 or x.shape[1] != c.inputs or c.inputs < 1 or c.outputs % c.inputs:
        raise ValueError(
            f"x must be [images, {c.inputs}, rows, columns], and {c.outputs} channels out a multiple of those in, "
            f"found {list(x.shape)}."
        )
    if tuple(weight.shape) != (c.outputs, 1, *c.kernel):
        raise ValueError(f"weight must be {[c.outputs, 1, *c.kernel]}, found {list(weight.shape)}.")
    if bias is not None and tuple(bias.shape) != (c.outputs,):
        raise ValueError(f"bias must be [{c.outputs}], found {list(bias.shape)}.")
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation {activation!r} is not known; choose one of {', '.join(ACTIVATIONS)}.")
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, weight, bias)):
        raise RuntimeError("this kernel has no gradients: call it under torch.no_grad(), or use nn.Conv2d")
    size = c.size(x.shape[2], x.shape[3])
    tensors = [t for t in (x, weight, bias) if t is not None]
    if not native.enabled() or any(t.dtype is not torch.float32 or not t.is_cpu for t in tensors):
        y = nn.functional.conv2d(x, weight, bias, c.stride, c.padding, groups=c.inputs)
        return reference.activate(y, activation)
    y = x.new_empty(x.shape[0], c.outputs, *size)
    bind_depthwise(x.contiguous(), y, weight.contiguous(), c, bias, None, activation)()
    return y


def bind_depthwise(
    x: Tensor,
    y: Tensor,
    weight: Tensor,
    convolution: Convolution,
    bias: Tensor | None = None,
    carried: Tensor | None = None,
    activation: str = "none",
) -> Bound:
    """A call of the same into memory that is there already, plus `carried`, which may be `y`: what whole networks run.

    Nothing is checked. x and y are both in PyTorch's order, or both in blocks; carried is like y. All are contiguous.
    """
    c, blocked = convolution, x.dim() == 5
    bias = None if bias is None else bias.contiguous()
    work = 2 * (
        y.numel() * c.taps + x.numel()
    )  # of no more than half the speed of a product: inputs are shared by few
    arguments = (
        x.data_ptr(), y.data_ptr(), x.shape[0], weight.data_ptr(), 0 if bias is None else bias.data_ptr(),
        0 if carried is None else carried.data_ptr(), ACTIVATIONS.index(activation), blocked, c.outputs,
        c.outputs // c.inputs, *size_of(x), *size_of(y), *c.kernel, *c.stride, *c.padding, native.threads(work),
    )  # fmt: skip
    return Bound(native.kernels().depthwise, arguments, (x, y, weight, bias, carried))
