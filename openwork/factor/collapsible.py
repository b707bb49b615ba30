"""Collapsible linear blocks: train a wide layer without a bend in it, keep the small one that it is."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from openwork.layouts.collapsible import CollapsibleConv2d, identity
from openwork.layouts.low_rank import LowRankLinear
from openwork.method import method
from openwork.restructuring import Restructuring, starting


@method(
    paper="Bhardwaj et al., Collapsible Linear Blocks for Super-Efficient Super Resolution, MLSys 2022, arXiv 2103.09404",
    kind="factor",
)
@dataclass(frozen=True, kw_only=True)
class Collapsible(Restructuring):
    """Make a weight the product of two larger ones while it trains; :func:`openwork.to_dense_` collapses them again, exactly.

    A convolution ``in -> out`` becomes one ``in -> p`` and one of a single tap ``p -> out``, a linear layer two linear layers,
    with no function between them::

        W = second first (+ identity)          what the network computes with, in training too

    It is the same set of functions, reached along another path: gradients are preconditioned by the factors. The authors train
    tiny networks for super-resolution so. The collapsed weight is an ordinary one and may then be pruned. Much of
    what it gains is that of larger steps: give the plain layer its own best learning rate before you compare.

    Args:
        expand: ``p``; 256, as in the paper. Layers that are larger than that on both sides stay: they would shrink.
        residual: add the input to convolutions that have as many outputs as inputs, stride 1 and the padding that keeps the size;
            it is a part of the collapsed weight.
        start: ``nearest``: a product that is the weight there was; or ``fresh``, random factors with He's deviation of the
            product.

    Differences from the authors' code: one bias, that of the output, for the two of a block are one in all they can do.
    """

    takes: ClassVar[tuple[type[nn.Module], ...]] = (nn.Linear, nn.Conv2d)

    expand: int = 256
    residual: bool = True
    start: Literal["nearest", "fresh"] = "nearest"

    def __post_init__(self) -> None:
        super().__post_init__()
        starting(self.start)
        if self.expand < 1:
            raise ValueError(f"a layer is expanded to at least one unit; got {self.expand}")

    def forms(self, layers: Mapping[str, Any]) -> Mapping[str, nn.Module | str]:
        return {name: self._form(name, layer) for name, layer in layers.items()}

    def _form(self, name: str, layer: Any) -> nn.Module | str:
        if isinstance(layer, nn.Conv2d) and (layer.groups > 1 or layer.padding_mode != "zeros"):
            return "stays: a convolution in groups, or with padding that is not zero"
        weight: Tensor = layer.weight.detach()
        inner = weight[0].numel()
        if self.expand < min(len(weight), inner):
            return f"stays: {self.expand} units are fewer than its {min(len(weight), inner)}"
        residual = isinstance(layer, nn.Conv2d) and self.residual and _keeps_size(layer)
        target = (weight - identity(weight) if residual else weight).flatten(1).double().cpu()
        second, first = self._factors(target, self.generator(name))
        if isinstance(layer, nn.Linear):
            return LowRankLinear(second.to(weight.dtype), first.to(weight.dtype), layer.bias)
        return CollapsibleConv2d(
            first.to(weight.dtype).view(-1, *weight.shape[1:]),
            second.to(weight.dtype),
            layer.bias,
            residual=residual,
            stride=layer.stride,
            padding=layer.padding,
            dilation=layer.dilation,
        )

    def _factors(self, target: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """``[out, p]`` and ``[p, in]``, drawn; one of them is then solved for, so that the product is the target."""
        outputs, inputs = target.shape
        second = torch.randn(outputs, self.expand, generator=generator, dtype=torch.float64)
        first = torch.randn(self.expand, inputs, generator=generator, dtype=torch.float64)
        second, first = second / math.sqrt(self.expand), first * math.sqrt(2.0 / inputs)
        if self.start == "fresh":
            return second, first
        if inputs <= outputs:  # the inverse on the thinner side is the better conditioned one
            return target @ torch.linalg.pinv(first), first
        return second, torch.linalg.pinv(second) @ target


def _keeps_size(layer: nn.Conv2d) -> bool:
    if (
        layer.in_channels != layer.out_channels
        or layer.stride != (1, 1)
        or not all(k % 2 for k in layer.kernel_size)
    ):
        return False
    if isinstance(layer.padding, str):
        return layer.padding == "same"
    reach = tuple(d * (k // 2) for d, k in zip(layer.dilation, layer.kernel_size, strict=True))
    return tuple(layer.padding) == reach
