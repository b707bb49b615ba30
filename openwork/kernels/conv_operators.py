"""The operators of sparse convolutions, closed under differentiation: the gradients of each are the two others.

In their signatures `numbers` is the convolution as a list; walks are as in `linear`: the first is that of the
matrix to multiply with, the other is there for the gradient.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from openwork.kernels import reference
from openwork.kernels.conv_product import multiply, weight_product
from openwork.kernels.planes import Convolution, geometry, group

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


def _conv_weight_gradient(
    x: Tensor, dy: Tensor, walk: list[Tensor], transposed: list[Tensor], numbers: list[int]
) -> Tensor:
    convolution, size = convolution_of(numbers), (x.shape[2], x.shape[3])
    laid = geometry(convolution, size, grouped=group(convolution, size, x.shape[0]))
    return weight_product(x, dy, laid, walk)


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
