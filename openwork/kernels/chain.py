"""Several sparse linear layers as one operation: one conversion to tiles, one node in autograd's graph.

What a layer by itself costs in Python and autograd, about as long as its kernel takes at high sparsity, is paid for the row
of layers once. In between, activations and their gradients exist as tiles only (page `tiles`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from openwork.kernels import linear
from openwork.kernels.execution import is_traced
from openwork.kernels.index import Prepared
from openwork.kernels.products import run_gradients, run_linear
from openwork.kernels.tiles import pack_rows, pack_tiles, unpack_rows, unpack_tiles


@dataclass(frozen=True, eq=False)
class Stage:
    """One layer of a chain.

    Attributes:
        prepared: its topology.
        values: [kept], in CSR order.
        bias: [outputs], or None.
        relu: whether relu is applied to its outputs.
    """

    prepared: Prepared
    values: Tensor
    bias: Tensor | None
    relu: bool

    @property
    def activation(self) -> str:
        """The name of its activation."""
        return "relu" if self.relu else "none"


def chained_linear(x: Tensor, stages: Sequence[Stage]) -> Tensor:
    """All stages one after the other, [batch, inputs] of the first to [batch, outputs] of the last: the numbers of
    `linear.sparse_linear`, bit for bit. Differentiable in x, values and biases, twice.

    Args:
        x: float32 on the CPU, as are all values and biases (`execution.is_native`).
        stages: fit each other.

    Raises:
        ValueError: the inputs of a stage are not the outputs of the one before.
    """
    width = x.shape[1]
    for i, stage in enumerate(stages):
        outputs, inputs = stage.prepared.shape
        if inputs != width:
            raise ValueError(f"stage {i} takes {inputs} features, and what comes before it gives {width}.")
        width = outputs
    parameters = [tensor for stage in stages for tensor in (stage.values, stage.bias)]
    if is_traced(x, *parameters):
        return _composed(x, stages)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, *parameters)):
        y: Tensor = _Chained.apply(x, stages, *parameters)  # type: ignore[no-untyped-call]
        return y
    return _forward(x, stages)[-1]


def _composed(x: Tensor, stages: Sequence[Stage]) -> Tensor:
    """The same from differentiable operators."""
    tiles = pack_tiles(x)
    for stage in stages:
        tiles = linear.differentiable(tiles, stage.values, stage.prepared, stage.bias, stage.activation)
    return unpack_tiles(tiles, x.shape[0])


def _forward(x: Tensor, stages: Sequence[Stage]) -> list[Tensor]:
    """The inputs of every stage as tiles, and the outputs of the last as rows."""
    activations = [pack_rows(x)]
    for stage in stages:
        batch = x.shape[0] if stage is stages[-1] else None
        activations.append(
            run_linear(
                activations[-1],
                stage.prepared.walk,
                stage.prepared.shape[0],
                values=stage.values,
                bias=stage.bias,
                activation=stage.activation,
                batch=batch,
            )
        )
    return activations


class _Chained(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, stages: Sequence[Stage], *parameters: Tensor | None) -> Tensor:
        activations = _forward(x, stages)
        ctx.save_for_backward(x if x.requires_grad else None, *activations, *parameters)
        ctx.stages = stages
        return activations[-1]

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        stages: Sequence[Stage] = ctx.stages
        x, *saved = ctx.saved_tensors
        activations, parameters = saved[: len(stages) + 1], saved[len(stages) + 1 :]
        wants_x, _, *wanted = ctx.needs_input_grad
        if torch.is_grad_enabled():
            return _differentiable_gradients(x, activations[0], stages, parameters, dy, wants_x, wanted)
        first = 0 if wants_x else next(i for i, wants in enumerate(wanted) if wants) // 2
        found: list[Tensor | None] = [None] * len(wanted)
        gradient: Tensor | None = dy
        for i in range(len(stages) - 1, first - 1, -1):
            assert gradient is not None
            stage, further = stages[i], wants_x or i > first
            gradient, found[2 * i], found[2 * i + 1] = run_gradients(
                activations[i],
                gradient,
                stage.prepared.walk,
                (further, wanted[2 * i], wanted[2 * i + 1]),
                gate=activations[i + 1] if stage.relu else None,
                values=parameters[2 * i],
                transposed=stage.prepared.transposed if further else (),
            )
        dx = unpack_rows(gradient, dy.shape[0]) if wants_x and gradient is not None else None
        return dx, None, *found


def _differentiable_gradients(
    x: Tensor | None,
    tiles: Tensor,
    stages: Sequence[Stage],
    parameters: Sequence[Tensor | None],
    dy: Tensor,
    wants_x: bool,
    wanted: Sequence[bool],
) -> tuple[Tensor | None, ...]:
    """Gradients that can be differentiated again. That is rare, so the chain is computed once more, from operators."""
    again = [
        Stage(stage.prepared, values, bias, stage.relu)
        for stage, values, bias in zip(stages, parameters[::2], parameters[1::2], strict=True)
        if values is not None
    ]
    rows = unpack_rows(tiles, dy.shape[0]) if x is None else x
    needed = [
        t for t, wants in zip((x, *parameters), (wants_x, *wanted), strict=True) if wants and t is not None
    ]
    found = iter(torch.autograd.grad(_composed(rows, again), needed, dy, create_graph=True))
    dx = next(found) if wants_x else None
    return dx, None, *(next(found) if wants else None for wants in wanted)
