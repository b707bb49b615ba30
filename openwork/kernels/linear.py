"""Linear layers with a sparse weight: `Y = activation(X W^T + b)`, `dX = dY W`, and `dW` at the kept weights
only.

Two operators are enough, because they are closed under differentiation: the gradient of `sparse_linear` with
respect to X is `sparse_linear` on the transposed matrix, with respect to the values it is `weight_gradient`,
whose own gradients are `sparse_linear` again. No array of the dense shape is ever made.

Each output is one chain of fused multiply-adds in ascending column order and each weight's gradient is summed
over the batch in order, by one thread: results have the same bits for every number of threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from openwork.kernels import native, reference
from openwork.kernels.index import ALIGNMENT, PERMUTED, TILE_WIDTH, Prepared, prepare

__all__ = ["ACTIVATIONS", "Prepared", "prepare", "sparse_linear", "weight_gradient"]

ACTIVATIONS = ("none", "relu", "gelu", "gelu_tanh", "silu")
"""Activations that can be fused (activation.h has the same order)."""

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


def is_native(*tensors: Tensor | None) -> bool:
    """Whether the native kernels compute with these tensors: float32 on the CPU, outside transforms of ``torch.func``, which
    need operators they know.
    """
    if not native.enabled() or torch._C._are_functorch_transforms_active():
        return False
    return all(t is None or (t.dtype is torch.float32 and t.is_cpu) for t in tensors)


def is_half(*tensors: Tensor | None) -> bool:
    """Whether these tensors are computed natively once they are widened: all bfloat16 or all float16, on the CPU."""
    dtypes = {t.dtype for t in tensors if t is not None}
    if not native.enabled() or len(dtypes) != 1 or dtypes.isdisjoint(_HALF):
        return False
    return all(t is None or t.is_cpu for t in tensors)


_HALF = {torch.bfloat16, torch.float16}


def is_traced(*tensors: Tensor | None) -> bool:
    """Whether someone looks at the operators instead of only at their results: a compiler, a transform such as
    ``torch.func.grad``, a mode that records or replaces operators. If nobody does, a kernel is called directly:
    the dispatcher's way to an operator written in Python takes ten microseconds and more, which is longer than
    many a sparse layer.
    """
    for tensor in tensors:
        if type(tensor) not in _PLAIN:
            return True
    return (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._are_functorch_transforms_active()
        or torch._C._is_tracing()
    )


_PLAIN = (Tensor, torch.nn.Parameter, type(None))


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


# The operators. A walk is [col, runs, buckets, parts], and [..., permutation] if it is that of the transposed
# matrix: `index.Prepared`. Of the two walks of an operator the first is the matrix to multiply with; the
# other is there for the gradient.


# Activations are row-major [batch, features], or feature-major tiles [tiles, features, 64] (page `tiles`):
# axis 1 is the features in both.


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


def _weight_gradient(x: Tensor, dy: Tensor, walk: list[Tensor], transposed: list[Tensor]) -> Tensor:
    if (
        len(walk) == PERMUTED
    ):  # the same numbers, from the matrix whose nonzeros are in the order of the values
        x, dy, walk = dy, x, transposed
    gradient = run_gradients(x, dy, walk, (False, True, False))[1]
    assert gradient is not None
    return gradient


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
            dbias = dy.sum(_SAMPLES[dy.dim()])
        return dx, dvalues, dbias, None, None, None


_SAMPLES = {2: (0,), 3: (0, 2)}
"""The axes of the samples, of rows and of tiles."""


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
        dbias = dy.sum(_SAMPLES[dy.dim()])
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
