"""Linear layers with a sparse weight: `Y = activation(X W^T + b)`, `dX = dY W`, and `dW` at the kept weights
only.

Each output is one chain of fused multiply-adds in ascending column order and each weight's gradient is summed
over the batch in order, by one thread: results have the same bits for every number of threads.

Page `linear_operators` has the same as operators of PyTorch, `products` the calls of the native kernels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from openwork.kernels import linear_operators, reference
from openwork.kernels.execution import is_half, is_native, is_traced
from openwork.kernels.index import Prepared, prepare
from openwork.kernels.products import ACTIVATIONS, Wanted, run_gradients, run_linear

__all__ = ["ACTIVATIONS", "Prepared", "prepare", "sparse_linear", "weight_gradient"]


def sparse_linear(
    x: Tensor, values: Tensor, prepared: Prepared, bias: Tensor | None = None, activation: str = "none"
) -> Tensor:
    """`activation(x W^T + bias)` for the sparse W of `values` at the topology of `prepared`.

    float32 on the CPU runs natively, and so do bfloat16 and float16, with float32 sums that are rounded once at the end;
    anything else goes through `reference.sparse_linear`. Differentiable in x, values and bias, twice.

    Args:
        x: [..., inputs]; any strides, any number of leading dimensions.
        values: [kept], in CSR order.
        prepared: the topology, from `prepare(crow, col, (outputs, inputs))`.
        bias: [outputs].
        activation: `none`, `relu`, `gelu` (exact), `gelu_tanh` or `silu`.

    Returns:
        [..., outputs], contiguous.

    Raises:
        ValueError: shapes do not fit, or an unknown activation.
    """
    outputs, inputs = prepared.shape
    check_linear(x, inputs, outputs, bias, activation)
    check_values(values, prepared)
    if is_half(x, values, bias):
        wide = None if bias is None else bias.float()
        return sparse_linear(x.float(), values.float(), prepared, wide, activation).to(x.dtype)
    if not is_native(x, values, bias):
        return reference.sparse_linear(x, values, prepared.positions, prepared.shape, bias, activation)
    if x.dim() == 2:
        return differentiable(x, values, prepared, bias, activation)
    rows = x.reshape(x.shape[:-1].numel(), inputs)
    return differentiable(rows, values, prepared, bias, activation).view(*x.shape[:-1], outputs)


def differentiable(
    x: Tensor,
    values: Tensor,
    prepared: Prepared,
    bias: Tensor | None,
    activation: str,
    batch: int | None = None,
) -> Tensor:
    """The operator with what its gradient will need; x [batch, inputs] or tiles.

    Outputs are held as x is; tiles also become [batch, outputs] if `batch` says how many samples they hold.
    """
    training = torch.is_grad_enabled() and (
        x.requires_grad or values.requires_grad or (bias is not None and bias.requires_grad)
    )
    # Smooth activations need their argument again in backward: when training, keeping it is cheaper than
    # recomputing it.
    fused = "none" if training and activation not in ("none", "relu") else activation
    y: Tensor
    if is_traced(x, values, bias):
        transposed = prepared.transposed if training and x.requires_grad else []
        y = torch.ops.openwork.sparse_linear(
            x, values, bias, prepared.walk, transposed, prepared.shape[0], fused
        )
        if batch is not None:
            y = torch.ops.openwork.unpack_tiles(y, batch)
    elif training:
        y = _Eager.apply(x, values, bias, prepared, fused, batch)  # type: ignore[no-untyped-call]
    else:
        y = run_linear(
            x, prepared.walk, prepared.shape[0], values=values, bias=bias, activation=fused, batch=batch
        )
    return y if fused == activation else reference.activate(y, activation)


def weight_gradient(x: Tensor, dy: Tensor, prepared: Prepared) -> Tensor:
    """`(dy^T x)` at the nonzeros of `prepared`, in CSR order.

    Args:
        x: [batch, inputs].
        dy: [batch, outputs].

    Returns:
        [kept].
    """
    outputs, inputs = prepared.shape
    if (
        x.dim() != 2
        or dy.dim() != 2
        or x.shape[0] != dy.shape[0]
        or x.shape[1] != inputs
        or dy.shape[1] != outputs
    ):
        raise ValueError(
            f"x must be [batch, {inputs}] and dy [batch, {outputs}], "
            f"found {list(x.shape)} and {list(dy.shape)}."
        )
    if is_half(x, dy):
        return weight_gradient(x.float(), dy.float(), prepared).to(x.dtype)
    if not is_native(x, dy):
        return reference.weight_gradient(x, dy, prepared.positions)
    transposed = prepared.transposed if torch.is_grad_enabled() and x.requires_grad else []
    gradient: Tensor = torch.ops.openwork.weight_gradient(x, dy, prepared.walk, transposed)
    return gradient


def check_linear(x: Tensor, inputs: int, outputs: int, bias: Tensor | None, activation: str) -> None:
    """Raise ValueError unless x is [..., inputs], bias [outputs] and the activation known."""
    if x.dim() == 0 or x.shape[-1] != inputs:
        raise ValueError(
            f"x must be [..., {inputs}] for a {outputs} x {inputs} weight, found {list(x.shape)}."
        )
    if bias is not None and (bias.dim() != 1 or bias.shape[0] != outputs):
        raise ValueError(f"bias must be [{outputs}], found {list(bias.shape)}.")
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation {activation!r} is not known; choose one of {', '.join(ACTIVATIONS)}.")


def check_values(values: Tensor, prepared: Prepared) -> None:
    """Raise ValueError unless there is one value for each kept weight."""
    if values.dim() != 1 or values.shape[0] != prepared.kept:
        raise ValueError(
            f"values must be [{prepared.kept}], one for each kept weight, found {list(values.shape)}."
        )


class _Eager(torch.autograd.Function):
    """The operator with its gradient, called directly. The dispatcher's way to an operator written in Python
    takes tens of microseconds each time, more than many a sparse layer.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        values: Tensor,
        bias: Tensor | None,
        prepared: Prepared,
        activation: str,
        batch: int | None,
    ) -> Tensor:
        y = run_linear(
            x, prepared.walk, prepared.shape[0], values=values, bias=bias, activation=activation, batch=batch
        )
        ctx.save_for_backward(x, values, y if activation == "relu" else None)
        ctx.prepared = prepared
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
        x, values, y = ctx.saved_tensors
        prepared: Prepared = ctx.prepared
        wanted: Wanted = ctx.needs_input_grad[:3]
        transposed = prepared.transposed if wanted[0] else []
        if not torch.is_grad_enabled():
            found = run_gradients(x, dy, prepared.walk, wanted, gate=y, values=values, transposed=transposed)
            return *found, None, None, None
        # The gradient of a gradient, which is rare, takes the way through the operators.
        if y is not None:
            dy = dy * (y > 0)
        if dy.dim() != x.dim():
            dy = torch.ops.openwork.pack_tiles(dy)
        dx = dvalues = dbias = None
        if wanted[0]:
            dx = torch.ops.openwork.sparse_linear(
                dy, values, None, transposed, prepared.walk, prepared.shape[1], "none"
            )
        if wanted[1]:
            dvalues = torch.ops.openwork.weight_gradient(x, dy, prepared.walk, transposed)
        if wanted[2]:
            dbias = linear_operators.samples_sum(dy)
        return dx, dvalues, dbias, None, None, None
