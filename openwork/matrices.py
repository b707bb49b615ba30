"""The matrix products that the weights of a model take part in: one for most, one per expert or group for some."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from openwork.weights import Weight


@dataclass(frozen=True)
class Matrix:
    """One matrix product of a model: a weight, one expert of a fused weight, or one group of a convolution.

    Attributes:
        name: of the parameter, followed by ``[i]`` where that holds several.
        weight: the parameter.
        index: which of its matrices.
        of: how many it holds; they lie one after another along the first axis of ``weight.shape``.
    """

    name: str
    weight: Weight
    index: int = 0
    of: int = 1

    @property
    def shape(self) -> tuple[int, ...]:
        """``[out, in, *kernel]`` of this matrix."""
        return (self.weight.shape[0] // self.of, *self.weight.shape[1:])

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """``(out, in * prod(kernel))``."""
        out, *inputs = self.shape
        return out, math.prod(inputs)

    @property
    def rows(self) -> slice:
        """Its outputs among those of the whole weight."""
        out = self.shape[0]
        return slice(self.index * out, (self.index + 1) * out)

    def view(self, tensor: Tensor) -> Tensor:
        """A tensor of the parameter's shape, seen as this ``[out, in, *kernel]``."""
        return self.weight.oriented(tensor)[self.rows]

    def matrix(self, tensor: Tensor) -> Tensor:
        """A tensor of the parameter's shape as a matrix ``[out, in * prod(kernel)]`` of its own, float32 (float64 if it is)."""
        dtype = torch.float64 if tensor.dtype == torch.float64 else torch.float32
        return self.view(tensor).flatten(1).to(dtype, copy=True)

    @property
    def bias(self) -> nn.Parameter | None:
        """The bias beside the weight, where the layer is of the usual kind and has one."""
        beside = {"weight": "bias", "in_proj_weight": "in_proj_bias"}.get(
            self.weight.name.rpartition(".")[2], ""
        )
        bias = getattr(self.weight.module, beside, None)
        return bias if isinstance(bias, nn.Parameter) and bias.dim() == 1 else None


def matrices(weight: Weight) -> list[Matrix]:
    """The matrix products that a parameter takes part in."""
    p, module = weight.parameter, weight.module
    of = 1
    if p.dim() == 3 and len(weight.shape) == 2:
        of = p.shape[0]
    elif isinstance(module, nn.modules.conv._ConvNd):
        of = module.groups
    if of == 1:
        return [Matrix(weight.name, weight)]
    return [Matrix(f"{weight.name}[{i}]", weight, i, of) for i in range(of)]


def unseen(weight: Weight) -> str:
    """Why the inputs of a weight cannot be watched, or "" where they can."""
    kind = type(weight.module).__name__
    if len(weight.shape) < 2:
        return f"a vector of {kind} takes part in no matrix product"
    if isinstance(weight.module, nn.modules.conv._ConvTransposeNd):
        return "the inputs of a transposed convolution are not collected"
    apart = isinstance(weight.module, nn.MultiheadAttention) and not weight.name.endswith("in_proj_weight")
    if apart or isinstance(weight.module, (nn.RNNBase, nn.RNNCellBase, nn.Bilinear)):
        return f"{kind} computes inside one fused operation, where its inputs cannot be seen"
    if (
        weight.parameter.dim() == 3
        and len(weight.shape) == 2
        and getattr(weight.module, "is_transposed", False)
    ):
        return f"{kind} holds the weights of its experts inputs first"
    return ""
