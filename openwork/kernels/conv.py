"""Convolutions with a sparse weight: `Y = activation(conv(X, W) + b)`, `dX`, and `dW` at the kept weights
only.

The weight is the matrix `[out, in * rows * columns]` in CSR form, as `weight.flatten(1)` has it. Three
operators are closed under differentiation: the gradients of each are the two others.

Images go through in their own order, `[images, channels, rows, columns]`; no copy per tap of the kernel is
made (pages csrc/planes.h, grouped.h, strips.h). Each output is one chain of fused multiply-adds in ascending
order of the weights, each weight's gradient is summed by one thread: results have the same bits for every
number of threads.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from openwork.kernels import native, reference
from openwork.kernels.conv_index import PreparedConv, prepare_conv
from openwork.kernels.execution import is_native
from openwork.kernels.planes import Convolution, Geometry, geometry, group
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


# The operators. `numbers` is the convolution as a list; walks are as in `linear`: the first is that of the
# matrix to multiply with, the other is there for the gradient.

_library = torch.library.Library("openwork", "FRAGMENT")
_WALKS = "Tensor[] walk, Tensor[] transposed, SymInt[] numbers"
for _signature in (
    f"sparse_conv(Tensor x, Tensor values, Tensor? bias, {_WALKS}, str activation) -> Tensor",
    f"conv_input_gradient(Tensor dy, Tensor values, {_WALKS}, SymInt rows, SymInt columns) -> Tensor",
    f"conv_weight_gradient(Tensor x, Tensor dy, {_WALKS}) -> Tensor",
):
    _library.define(_signature, tags=(torch.Tag.pt2_compliant_tag,))

_forward = torch.ops.openwork.sparse_conv
_input_gradient = torch.ops.openwork.conv_input_gradient
_weight_gradient = torch.ops.openwork.conv_weight_gradient


def numbers_of(c: Convolution) -> list[int]:
    """The convolution as the operators take it."""
    return [c.outputs, c.inputs, *c.kernel, *c.stride, *c.padding]


def convolution_of(numbers: list[int]) -> Convolution:
    """The inverse of `numbers_of`."""
    outputs, inputs, *pairs = numbers
    return Convolution(outputs, inputs, (pairs[0], pairs[1]), (pairs[2], pairs[3]), (pairs[4], pairs[5]))


def _sparse_conv(
    x: Tensor,
    values: Tensor,
    bias: Tensor | None,
    walk: list[Tensor],
    transposed: list[Tensor],
    numbers: list[int],
    activation: str,
) -> Tensor:
    convolution = convolution_of(numbers)
    size = (x.shape[2], x.shape[3])
    rows, columns = convolution.size(*size)
    laid = geometry(convolution, size, grouped=group(convolution, size, x.shape[0]))
    return multiply(
        x, laid, walk, (convolution.outputs, rows, columns), values=values, bias=bias, activation=activation
    )


def _conv_input_gradient(
    dy: Tensor,
    values: Tensor,
    walk: list[Tensor],
    transposed: list[Tensor],
    numbers: list[int],
    rows: int,
    columns: int,
) -> Tensor:
    convolution = convolution_of(numbers)
    size = (rows, columns)
    laid = geometry(convolution, size, grouped=group(convolution, size, dy.shape[0]), backwards=True)
    return multiply(dy, laid, transposed, (convolution.inputs, rows, columns), values=values)


def multiply(
    x: Tensor,
    laid: Geometry,
    walk: list[Tensor],
    shape: tuple[int, int, int],
    *,
    values: Tensor | None = None,
    words: Tensor | None = None,
    bias: Tensor | None = None,
    activation: str = "none",
) -> Tensor:
    """The native kernel: [images, *shape], with the weights as values or as a woven stream."""
    y = x.new_empty(x.shape[0], *shape)
    multiply_into(
        x.contiguous(),
        y,
        x.shape[0],
        laid,
        walk,
        values=values,
        words=words,
        bias=bias,
        activation=activation,
    )
    return y


SHARING = 8
"""How much more work than elsewhere is worth sharing: threads that share an image wait for each other three times."""


def multiply_into(
    x: Tensor,
    y: Tensor,
    images: int,
    laid: Geometry,
    walk: list[Tensor],
    *,
    values: Tensor | None = None,
    words: Tensor | None = None,
    bias: Tensor | None = None,
    carried: Tensor | None = None,
    activation: str = "none",
) -> None:
    """The same into a `y` that is there already, plus `carried`, which may be `y` itself. All are contiguous.

    x is [images, channels, rows, columns], or in blocks of 16 images (`openwork.kernels.blocked`) where the
    geometry is grouped; y as well, and carried is like y.
    """
    col, runs, buckets, parts, *permutation = walk
    values = None if values is None else values.contiguous()
    bias = None if bias is None else bias.contiguous()
    work = col.numel() * laid.grid[0] * laid.grid[1] * images + x.numel() + y.numel()
    native.kernels().sparse_conv(
        x.data_ptr(), y.data_ptr(), images, laid.numbers.data_ptr(), _address(words), _address(values),
        _address(*permutation), _address(bias), _address(carried), ACTIVATIONS.index(activation), x.dim() == 5,
        y.dim() == 5, col.data_ptr(), col.numel(), runs.data_ptr(), buckets.data_ptr(), parts.data_ptr(),
        buckets.shape[0], buckets.shape[1], native.threads(work // SHARING),
    )  # fmt: skip


def _conv_weight_gradient(
    x: Tensor, dy: Tensor, walk: list[Tensor], transposed: list[Tensor], numbers: list[int]
) -> Tensor:
    convolution, size = convolution_of(numbers), (x.shape[2], x.shape[3])
    laid = geometry(convolution, size, grouped=group(convolution, size, x.shape[0]))
    col, runs, buckets, parts = walk
    x, dy = x.contiguous(), dy.contiguous()
    gradient = x.new_empty(col.numel()) if x.shape[0] else x.new_zeros(col.numel())
    work = col.numel() * laid.grid[0] * laid.grid[1] * x.shape[0] + x.numel() + dy.numel()
    native.kernels().conv_weight_gradient(
        x.data_ptr(), dy.data_ptr(), x.shape[0], laid.numbers.data_ptr(), gradient.data_ptr(),
        col.data_ptr(), runs.data_ptr(), buckets.data_ptr(), parts.data_ptr(), buckets.shape[0],
        buckets.shape[1], native.threads(work),
    )  # fmt: skip
    return gradient


def _address(tensor: Tensor | None = None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _save_forward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, values, bias, walk, transposed, numbers, activation = inputs
    _save(ctx, (x, values, bias, output if activation == "relu" else None), walk, transposed, numbers)
    ctx.activation = activation


def _save_input(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    dy, values, walk, transposed, numbers, _, _ = inputs
    _save(ctx, (dy, values), walk, transposed, numbers)


def _save_weight(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, dy, walk, transposed, numbers = inputs
    _save(ctx, (x, dy), walk, transposed, numbers)


def _save(
    ctx: Any,
    tensors: tuple[Tensor | None, ...],
    walk: list[Tensor],
    transposed: list[Tensor],
    numbers: list[int],
) -> None:
    ctx.save_for_backward(*tensors, *walk, *transposed)
    ctx.counts = len(tensors), len(walk)
    ctx.numbers = numbers


def _saved(
    ctx: Any,
) -> tuple[list[Any], tuple[list[Tensor], list[Tensor], list[int]], list[None], list[None]]:
    """The tensors, the arguments (walk, transposed, numbers), and the gradients of both walks: none."""
    tensors, walk = ctx.counts
    saved = ctx.saved_tensors
    walks = list(saved[tensors : tensors + walk]), list(saved[tensors + walk :])
    return list(saved[:tensors]), (*walks, ctx.numbers), [None] * len(walks[0]), [None] * len(walks[1])


def _forward_backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
    (x, values, bias, y), arguments, *nothing = _saved(ctx)
    dx = dvalues = dbias = None
    if ctx.activation == "relu":
        dy = dy * (y > 0)
    elif ctx.activation != "none":
        z = _forward(x, values, bias, *arguments, "none")
        with torch.enable_grad():
            argument = z.detach().requires_grad_()
            (dy,) = torch.autograd.grad(reference.activate(argument, ctx.activation), argument, dy)
    if ctx.needs_input_grad[0]:
        dx = _input_gradient(dy, values, *arguments, x.shape[2], x.shape[3])
    if ctx.needs_input_grad[1]:
        dvalues = _weight_gradient(x, dy, *arguments)
    if ctx.needs_input_grad[2]:
        dbias = dy.sum((0, 2, 3))
    return dx, dvalues, dbias, *nothing, None, None


def _input_backward(ctx: Any, upstream: Tensor) -> tuple[Any, ...]:
    (dy, values), arguments, *nothing = _saved(ctx)
    ddy = dvalues = None
    if ctx.needs_input_grad[0]:
        ddy = _forward(upstream, values, None, *arguments, "none")
    if ctx.needs_input_grad[1]:
        dvalues = _weight_gradient(upstream, dy, *arguments)
    return ddy, dvalues, *nothing, None, None, None


def _weight_backward(ctx: Any, upstream: Tensor) -> tuple[Any, ...]:
    (x, dy), arguments, *nothing = _saved(ctx)
    dx = ddy = None
    if ctx.needs_input_grad[0]:
        dx = _input_gradient(dy, upstream, *arguments, x.shape[2], x.shape[3])
    if ctx.needs_input_grad[1]:
        ddy = _forward(x, upstream, None, *arguments, "none")
    return dx, ddy, *nothing, None


def _forward_fake(
    x: Tensor,
    values: Tensor,
    bias: Tensor | None,
    walk: list[Tensor],
    transposed: list[Tensor],
    numbers: list[int],
    activation: str,
) -> Tensor:
    rows, columns = convolution_of(numbers).size(x.shape[2], x.shape[3])
    return x.new_empty(x.shape[0], numbers[0], rows, columns)


def _input_fake(
    dy: Tensor,
    values: Tensor,
    walk: list[Tensor],
    transposed: list[Tensor],
    numbers: list[int],
    rows: int,
    columns: int,
) -> Tensor:
    return dy.new_empty(dy.shape[0], numbers[1], rows, columns)


def _weight_fake(
    x: Tensor, dy: Tensor, walk: list[Tensor], transposed: list[Tensor], numbers: list[int]
) -> Tensor:
    return x.new_empty(walk[0].numel())


for _name, _kernel, _fake, _setup, _backward in (
    ("sparse_conv", _sparse_conv, _forward_fake, _save_forward, _forward_backward),
    ("conv_input_gradient", _conv_input_gradient, _input_fake, _save_input, _input_backward),
    ("conv_weight_gradient", _conv_weight_gradient, _weight_fake, _save_weight, _weight_backward),
):
    _library.impl(_name, _kernel, "CPU")
    torch.library.register_fake(f"openwork::{_name}", _fake, lib=_library)
    torch.library.register_autograd(f"openwork::{_name}", _backward, setup_context=_setup, lib=_library)
