"""Packing convolutions, with the batch norms behind them."""

from __future__ import annotations

import json
from collections.abc import Callable

import torch
from torch import nn

from openwork.kernels.conv import Convolution
from openwork.layouts.conv import SparseConv2d, convolution_of
from openwork.layouts.conv_layout import CONV_LAYOUTS, ConvLayout, Size, TorchConv
from openwork.layouts.packed_conv import DenseConv2d, FoldedBatchNorm2d, PackedConv2d, Weights, connections_of
from openwork.pack.choice import Trial, density_step


class ConvTrial(Trial[ConvLayout]):
    """A convolution of images of one size."""

    def __init__(
        self, convolution: Convolution, weights: Weights, size: Size, activation: str = "none"
    ) -> None:
        self.activation = activation
        self.convolution, self.size, self.batch = convolution, size, size[0]
        self.topology, self.values, self.bias = weights
        self.shape = (convolution.outputs, convolution.inputs, *convolution.kernel)
        suited = [
            cls for cls in CONV_LAYOUTS if cls.unsuited(convolution, self.topology, self.values, size) is None
        ]
        self.suited = {cls.name: cls for cls in suited}
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(size[0], convolution.inputs, *size[1:], generator=generator)
        self.x = x.to(self.values.device, self.values.dtype)

    def forms(self) -> dict[str, bool]:
        return {name: cls.dense for name, cls in self.suited.items()}

    def key(self) -> str:
        c = self.convolution
        parts = [
            "conv",
            *self.shape,
            *c.stride,
            *c.padding,
            density_step(self.topology),
            *self.size,
            str(self.values.dtype),
            self.activation,
            list(self.suited),
        ]
        return json.dumps(parts, separators=(",", ":"))

    def hold(self, form: str) -> ConvLayout:
        return self.suited[form].build(self.convolution, self.topology, self.values, self.size)

    def call(self, held: ConvLayout) -> Callable[[], object]:
        x, bias, activation = self.x, self.bias, self.activation
        return lambda: held.conv(x, bias, activation)


def packed_conv(
    layer: nn.Conv2d, chosen: dict[Size, ConvLayout], activation: str, norm: FoldedBatchNorm2d | None
) -> nn.Module:
    """The layer that takes the place of ``layer``; itself where nothing is faster and nothing to fold."""
    if any(not held.dense for held in chosen.values()):
        return PackedConv2d.pack(convolution_of(layer), connections_of(layer), chosen, activation, norm)
    if isinstance(layer, SparseConv2d):
        return DenseConv2d.pack(layer.to_conv(), chosen, activation, norm)
    if norm is None and all(type(held) is TorchConv for held in chosen.values()):
        return layer
    return DenseConv2d.pack(layer, chosen, activation, norm)
