"""The products of a sparse matrix as PyTorch operators, with shapes and gradients.

Two operators are enough, because they are closed under differentiation: the gradient of `sparse_linear` with respect to X is
`sparse_linear` on the transposed matrix, with respect to the values it is `weight_gradient`, whose own gradients are
`sparse_linear` again. No array of the dense shape is ever made.

Of the two walks of an operator the first is the matrix to multiply with; the other is there for the gradient.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from openwork.kernels import reference
from openwork.kernels.index import PERMUTED
from openwork.kernels.products import run_gradients, run_linear

_library = torch.library.Library("openwork", "FRAGMENT")
_library.define(
    "sparse_linear(Tensor x, Tensor values, Tensor? bias, Tensor[] walk, Tensor[] transposed, SymInt outputs,"
    " str activation) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)
_library.define(
    "weight_gradient(Tensor x, Tensor dy, Tensor[] walk, Tensor[] transposed) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)


def _sparse_linear(
    x: Tensor,
    values: Tensor,
    bias: Tensor | None,
    walk: list[Tensor],
    transposed: list[Tensor],
    outputs: int,
    activation: str,
) -> Tensor:
    return run_linear(x, walk, outputs, values=values, bias=bias, activation=activation)


def _weight_gradient(x: Tensor, dy: Tensor, walk: list[Tensor], transposed: list[Tensor]) -> Tensor:
    # The same numbers, from the matrix whose nonzeros are in the order of the values.
    if len(walk) == PERMUTED:
        x, dy, walk = dy, x, transposed
    gradient = run_gradients(x, dy, walk, (False, True, False))[1]
    assert gradient is not None
    return gradient


def samples_sum(dy: Tensor) -> Tensor:
    """The gradient of the bias: dy [batch, outputs] or tiles summed over the samples."""
    return dy.sum((0,) if dy.dim() == 2 else (0, 2))


def _save_linear(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, values, bias, walk, transposed, outputs, activation = inputs
    ctx.save_for_backward(x, values, bias, output if activation == "relu" else None, *walk, *transposed)
    ctx.walk_length = len(walk)
    ctx.outputs, ctx.activation = outputs, activation


def _linear_backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
    x, values, bias, y, *indices = ctx.saved_tensors
    walk, transposed = indices[: ctx.walk_length], indices[ctx.walk_length :]
    dx = dvalues = dbias = None
    if ctx.activation == "relu":
        dy = dy * (y > 0)
    elif ctx.activation != "none":
        z = torch.ops.openwork.sparse_linear(x, values, bias, walk, transposed, ctx.outputs, "none")
        with torch.enable_grad():
            argument = z.detach().requires_grad_()
            (dy,) = torch.autograd.grad(reference.activate(argument, ctx.activation), argument, dy)
    if ctx.needs_input_grad[0]:
        dx = torch.ops.openwork.sparse_linear(dy, values, None, transposed, walk, x.shape[1], "none")
    if ctx.needs_input_grad[1]:
        dvalues = torch.ops.openwork.weight_gradient(x, dy, walk, transposed)
    if ctx.needs_input_grad[2]:
        dbias = samples_sum(dy)
    return dx, dvalues, dbias, [None] * ctx.walk_length, [None] * len(transposed), None, None


def _save_gradient(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, dy, walk, transposed = inputs
    ctx.save_for_backward(x, dy, *walk, *transposed)
    ctx.walk_length = len(walk)


def _gradient_backward(ctx: Any, upstream: Tensor) -> tuple[Any, ...]:
    x, dy, *indices = ctx.saved_tensors
    walk, transposed = indices[: ctx.walk_length], indices[ctx.walk_length :]
    dx = ddy = None
    if ctx.needs_input_grad[0]:
        dx = torch.ops.openwork.sparse_linear(dy, upstream, None, transposed, walk, x.shape[1], "none")
    if ctx.needs_input_grad[1]:
        ddy = torch.ops.openwork.sparse_linear(x, upstream, None, walk, transposed, dy.shape[1], "none")
    return dx, ddy, [None] * ctx.walk_length, [None] * len(transposed)


def _linear_fake(
    x: Tensor,
    values: Tensor,
    bias: Tensor | None,
    walk: list[Tensor],
    transposed: list[Tensor],
    outputs: int,
    activation: str,
) -> Tensor:
    return x.new_empty(x.shape[0], outputs, *x.shape[2:])


def _gradient_fake(x: Tensor, dy: Tensor, walk: list[Tensor], transposed: list[Tensor]) -> Tensor:
    return x.new_empty(walk[0].numel())


_library.impl("sparse_linear", _sparse_linear, "CPU")
_library.impl("weight_gradient", _weight_gradient, "CPU")
for _name, _fake, _save, _backward in (
    ("openwork::sparse_linear", _linear_fake, _save_linear, _linear_backward),
    ("openwork::weight_gradient", _gradient_fake, _save_gradient, _gradient_backward),
):
    torch.library.register_fake(_name, _fake, lib=_library)
    torch.library.register_autograd(_name, _backward, setup_context=_save, lib=_library)
