"""What a packed network does, one step after the other, on values that are plain tensors or images in blocks.

A value in blocks (:mod:`openwork.kernels.blocked`) has five axes where PyTorch's has four, ``[blocks, rows, channels,
columns, 16]``, and nothing else ever has such a value in front of it: steps that do not know blocks get them undone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from openwork.kernels.blocked import Pair, pool
from openwork.kernels.conv import Convolution
from openwork.kernels.conv_product import Bound
from openwork.kernels.depthwise import bind_depthwise
from openwork.layouts.conv import convolution_of
from openwork.layouts.conv_layout import Frozen, PixelsConv, frozen_weights
from openwork.layouts.csr import CSR
from openwork.layouts.packed_conv import PackedConv, Weights, connections_of, folded, scale_and_shift
from openwork.pack.places import Values, filled, places


@dataclass(eq=False)
class Step:
    """One step: ``values[to]`` from other values.

    Attributes:
        to: where the result goes. Steps that write into memory find it there already, if the network owns it.
        shape: of the result as PyTorch has it, with the images of the example.
        blocked: whether the result is in blocks.
    """

    to: int
    shape: tuple[int, ...]
    blocked: bool

    owned = False
    """Whether the result is written into memory that is there already."""

    def reads(self) -> list[int]:
        """The places of the arguments."""
        raise NotImplementedError

    def run(self, values: Values, images: int) -> None:
        """Compute it, for so many images."""
        raise NotImplementedError

    def bind(self, values: Values, images: int) -> Callable[[], None] | None:
        """A call that does the same in this memory, again and again; None where some of the memory is not there yet."""
        return None


@dataclass(eq=False)
class Conv(Step):
    """A convolution, what is carried around it, and the activation behind both."""

    layer: nn.Conv2d
    norm: nn.BatchNorm2d | None
    grouped: bool
    x: int
    carried: int | None
    activation: str

    owned = True

    def hold(self) -> None:
        """Take the weights that the layer has now."""
        if isinstance(self.layer, PackedConv):
            self.layer.refresh()
        convolution, (topology, values, self.bias) = computed(self.layer, self.norm)
        self.frozen = self._held(convolution, topology, values)

    def _held(self, convolution: Convolution, topology: CSR, values: Tensor) -> Frozen:
        # What the layer holds for itself will do, where it is of the same kind.
        for held in self.layer.by_images.values() if isinstance(self.layer, PackedConv) else ():
            if isinstance(held, PixelsConv) and held.grouped == self.grouped:
                return held.frozen
        return frozen_weights(convolution, topology, values, grouped=self.grouped)

    def reads(self) -> list[int]:
        return [self.x] if self.carried is None else [self.x, self.carried]

    def run(self, values: Values, images: int) -> None:
        carried = None if self.carried is None else values[self.carried].contiguous()
        x = values[self.x].contiguous()
        self.frozen.into(x, values[self.to], images, self.bias, carried, self.activation)

    def bind(self, values: Values, images: int) -> Callable[[], None] | None:
        carried = None if self.carried is None else values[self.carried]
        x, y = values[self.x], values[self.to]
        if x is None or y is None or (carried is None) != (self.carried is None):
            return None
        return self._bound(x, y, images, carried)

    def _bound(self, x: Tensor, y: Tensor, images: int, carried: Tensor | None) -> Bound:
        return self.frozen.bind(x, y, images, self.bias, carried, self.activation)


@dataclass(eq=False)
class Depthwise(Conv):
    """A convolution that keeps channels apart: each output channel sees one input channel."""

    def hold(self) -> None:
        """Take the weights that the layer has now."""
        layer, norm = self.layer, self.norm
        self.convolution, self.weight = convolution_of(layer), layer.weight.detach().contiguous()
        self.bias = None if layer.bias is None else layer.bias.detach()
        if norm is not None:
            scale, self.bias = scale_and_shift(norm, self.bias)
            self.weight = self.weight * scale[:, None, None, None]

    def run(self, values: Values, images: int) -> None:
        carried = None if self.carried is None else values[self.carried].contiguous()
        self._bound(values[self.x].contiguous(), values[self.to], images, carried)()

    def _bound(self, x: Tensor, y: Tensor, images: int, carried: Tensor | None) -> Bound:
        return bind_depthwise(x, y, self.weight, self.convolution, self.bias, carried, self.activation)


def is_depthwise(conv: nn.Conv2d) -> bool:
    """Whether there is a group for each input channel, and more than one."""
    return conv.groups == conv.in_channels > 1


@dataclass(eq=False)
class Pool(Step):
    """A pooling of blocks."""

    x: int
    window: Pair
    stride: Pair
    padding: Pair
    mean: bool

    owned = True

    def reads(self) -> list[int]:
        return [self.x]

    def run(self, values: Values, images: int) -> None:
        x = values[self.x].contiguous()
        pool(x, values[self.to], self.window, self.stride, self.padding, mean=self.mean)


@dataclass(eq=False)
class Blocked(Step):
    """An operator of PyTorch on blocks; ``call`` takes them, and the number of images."""

    arguments: list[int]
    call: Callable[..., Tensor]

    def reads(self) -> list[int]:
        return self.arguments

    def run(self, values: Values, images: int) -> None:
        values[self.to] = self.call(*(values[i] for i in self.arguments), images=images)


@dataclass(eq=False)
class Plain(Step):
    """Whatever the model does that is not known here, on plain tensors.

    ``call`` takes the values at ``arguments``, put back into the lists, tuples and dicts they came in.
    """

    arguments: Any
    keywords: Any
    call: Callable[..., Any]

    def reads(self) -> list[int]:
        return [place.at for place in places((self.arguments, self.keywords))]

    def run(self, values: Values, images: int) -> None:
        arguments, keywords = filled(self.arguments, values), filled(self.keywords, values)
        values[self.to] = self.call(*arguments, **keywords)


def computed(layer: nn.Conv2d, norm: nn.BatchNorm2d | None) -> tuple[Convolution, Weights]:
    """What a layer computes with: weights with the norm behind it folded in. A convolution in groups is one whose other
    connections are zero.
    """
    if layer.groups == 1:
        return convolution_of(layer), folded(connections_of(layer), norm)
    groups, weight = layer.groups, layer.weight.detach()
    per_group = layer.in_channels // groups * weight[0, 0].numel()
    mask = weight.flatten(1) != 0
    row, column = mask.nonzero(as_tuple=True)
    column = column + row // (layer.out_channels // groups) * per_group
    shape = layer.out_channels, groups * per_group
    topology = CSR.from_positions(row * shape[1] + column, shape)
    bias = None if layer.bias is None else layer.bias.detach()
    return convolution_of(layer), folded((topology, weight.flatten(1)[mask], bias), norm)
