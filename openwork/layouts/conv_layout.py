"""What a convolution layout is: one way to hold the weight of a convolution for inference, with its kernel.

As :mod:`openwork.layouts.layout` for linear layers: :func:`openwork.pack_` builds every layout that suits a convolution, times
them, and keeps the fastest. The dense ones are what every sparse layout has to beat: PyTorch's own, oneDNN with the weight
reordered once, and both with channels last.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from openwork.kernels import native
from openwork.kernels.block_conv import HEIGHTS, BlockConv, block_conv, freeze_blocks
from openwork.kernels.conv import Convolution, prepare_conv
from openwork.kernels.frozen_conv import FrozenConv, freeze_conv, frozen_conv
from openwork.layouts.csr import CSR
from openwork.layouts.dense import activated
from openwork.layouts.reordered import Reordered
from openwork.layouts.row_blocks import DENSEST, height

Size = tuple[int, int, int]
"""Images in a call, and their rows and columns."""

Frozen = FrozenConv | BlockConv
"""Kept weights that no longer change, as the kernels hold them."""


class ConvLayout(ABC):
    """A frozen weight ``[out, in, rows, columns]`` and its kernel.

    Attributes:
        name: what tables call it.
        dense: whether it holds zeros too.
    """

    name: ClassVar[str]
    dense: ClassVar[bool] = True

    @classmethod
    @abstractmethod
    def unsuited(cls, convolution: Convolution, topology: CSR, values: Tensor, size: Size) -> str | None:
        """Why this layout cannot serve such images; None where it can."""

    @classmethod
    @abstractmethod
    def build(cls, convolution: Convolution, topology: CSR, values: Tensor, size: Size) -> Self:
        """Hold ``values [kept]`` at the connections of ``topology``, for about as many images as ``size`` says."""

    @abstractmethod
    def conv(self, x: Tensor, bias: Tensor | None, activation: str) -> Tensor:
        """``activation(conv(x, W) + bias)`` for ``x [images, in, rows, columns]``, without gradients."""

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes it holds."""


class TorchConv(ConvLayout):
    """PyTorch's ``conv2d``."""

    name: ClassVar[str] = "dense"
    memory_format: ClassVar[torch.memory_format] = torch.contiguous_format

    def __init__(self, convolution: Convolution, weight: Tensor) -> None:
        self.convolution, self.weight = convolution, weight

    @classmethod
    def unsuited(cls, convolution: Convolution, topology: CSR, values: Tensor, size: Size) -> str | None:
        return None

    @classmethod
    def build(cls, convolution: Convolution, topology: CSR, values: Tensor, size: Size) -> Self:
        weight = topology.dense(values).unflatten(1, (convolution.inputs, *convolution.kernel))
        return cls(convolution, weight.contiguous(memory_format=cls.memory_format))

    def conv(self, x: Tensor, bias: Tensor | None, activation: str) -> Tensor:
        c = self.convolution
        x = x.contiguous(memory_format=self.memory_format)
        return activated(nn.functional.conv2d(x, self.weight, bias, c.stride, c.padding), activation)

    @property
    def nbytes(self) -> int:
        return self.weight.numel() * self.weight.element_size()


class ChannelsLastConv(TorchConv):
    """The same with the channels of a pixel side by side."""

    name: ClassVar[str] = "dense channels last"
    memory_format: ClassVar[torch.memory_format] = torch.channels_last


class OneDNNConv(Reordered, ConvLayout):
    """oneDNN with the weight reordered once for a size of images, reached through the ``mkldnn`` operators of torch."""

    name: ClassVar[str] = "dense onednn"
    memory_format: ClassVar[torch.memory_format] = torch.contiguous_format

    def __init__(self, convolution: Convolution, weight: Tensor, size: Size) -> None:
        self.convolution, self.size = convolution, size
        self.weight = self.reordered(weight)

    @classmethod
    def unsuited(cls, convolution: Convolution, topology: CSR, values: Tensor, size: Size) -> str | None:
        if not (
            torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_reorder_convolution_weight")
        ):
            return "this build of torch has no oneDNN"
        if values.device.type != "cpu" or values.dtype not in (torch.float32, torch.bfloat16):
            return f"it computes float32 and bfloat16 on the CPU, not {values.dtype} on {values.device.type}"
        return "it wants at least one image" if size[0] < 1 else None

    @classmethod
    def build(cls, convolution: Convolution, topology: CSR, values: Tensor, size: Size) -> Self:
        weight = topology.dense(values).unflatten(1, (convolution.inputs, *convolution.kernel))
        return cls(convolution, weight.contiguous(), size)

    def reordered(self, weight: Tensor) -> Tensor:
        c, (images, *pixels) = self.convolution, self.size
        found: Tensor = torch.ops.mkldnn._reorder_convolution_weight(
            weight, list(c.padding), list(c.stride), [1, 1], 1, [images, c.inputs, *pixels]
        )
        return found

    def conv(self, x: Tensor, bias: Tensor | None, activation: str) -> Tensor:
        c, fused = self.convolution, activation == "relu"
        x = x.contiguous(memory_format=self.memory_format)
        y: Tensor = torch.ops.mkldnn._convolution_pointwise(
            x,
            self.weight,
            bias,
            list(c.padding),
            list(c.stride),
            [1, 1],
            1,
            "relu" if fused else "none",
            [],
            "",
        )
        return y if fused else activated(y, activation)

    @property
    def nbytes(self) -> int:
        return self.weight.numel() * self.weight.element_size()


class ChannelsLastOneDNNConv(OneDNNConv):
    """The same with the channels of a pixel side by side."""

    name: ClassVar[str] = "dense onednn channels last"
    memory_format: ClassVar[torch.memory_format] = torch.channels_last


class PixelsConv(ConvLayout):
    """Kept weights only; 16 neighbouring pixels of an image are computed side by side. For any number of images."""

    name: ClassVar[str] = "csr pixels"
    dense: ClassVar[bool] = False
    grouped: ClassVar[bool] = False

    def __init__(self, frozen: Frozen) -> None:
        self.frozen = frozen

    @classmethod
    def unsuited(cls, convolution: Convolution, topology: CSR, values: Tensor, size: Size) -> str | None:
        if values.dtype != torch.float32 or values.device.type != "cpu":
            return f"it computes float32 on the CPU, not {values.dtype} on {values.device.type}"
        return None if native.enabled() else "the native kernels are turned off"

    @classmethod
    def build(cls, convolution: Convolution, topology: CSR, values: Tensor, size: Size) -> Self:
        prepared = prepare_conv(topology.crow.clone(), topology.col.clone(), convolution, "weight")
        return cls(freeze_conv(values, prepared, grouped=cls.grouped))

    def conv(self, x: Tensor, bias: Tensor | None, activation: str) -> Tensor:
        if isinstance(self.frozen, BlockConv):
            return block_conv(x, self.frozen, bias, activation)
        return frozen_conv(x, self.frozen, bias, activation)

    @property
    def nbytes(self) -> int:
        return self.frozen.nbytes


class ImagesConv(PixelsConv):
    """Kept weights only; 16 images are computed side by side. For batches."""

    name: ClassVar[str] = "csr images"
    grouped: ClassVar[bool] = True

    @classmethod
    def unsuited(cls, convolution: Convolution, topology: CSR, values: Tensor, size: Size) -> str | None:
        return cls.unsuited_images(size[0]) or super().unsuited(convolution, topology, values, size)

    @staticmethod
    def unsuited_images(images: int) -> str | None:
        """Why it cannot serve so many images; None where it can."""
        return f"it computes 16 images at a time, and there are {images}" if images < 6 else None


class BlockPixelsConv(PixelsConv):
    """2, 4 or 8 consecutive output channels share one list of taps; 16 neighbouring pixels are computed side by side.

    The row blocks (:mod:`openwork.layouts.row_blocks`) of convolutions, with what is said there about zeros.
    """

    name: ClassVar[str] = "row blocks pixels"

    @classmethod
    def unsuited(cls, convolution: Convolution, topology: CSR, values: Tensor, size: Size) -> str | None:
        if wrong := super().unsuited(convolution, topology, values, size):
            return wrong
        return (
            None
            if sharing_channels(topology)
            else "its output channels do not share their taps in blocks of 2 or more"
        )

    @classmethod
    def build(cls, convolution: Convolution, topology: CSR, values: Tensor, size: Size) -> Self:
        high = (
            sharing_channels(topology) or HEIGHTS[-1]
        )  # another state may be loaded, of another topology: then with zeros
        return cls(freeze_blocks(topology.crow, topology.col, values, convolution, high, grouped=cls.grouped))


class BlockImagesConv(BlockPixelsConv):
    """The same, 16 images side by side. For batches."""

    name: ClassVar[str] = "row blocks images"
    grouped: ClassVar[bool] = True

    @classmethod
    def unsuited(cls, convolution: Convolution, topology: CSR, values: Tensor, size: Size) -> str | None:
        wrong = ImagesConv.unsuited_images(size[0])
        return wrong or super().unsuited(convolution, topology, values, size)


CONV_LAYOUTS: tuple[type[ConvLayout], ...] = (
    TorchConv,
    ChannelsLastConv,
    OneDNNConv,
    ChannelsLastOneDNNConv,
    PixelsConv,
    ImagesConv,
    BlockPixelsConv,
    BlockImagesConv,
)
"""All layouts of convolutions, sparse and dense."""


def sharing_channels(topology: CSR) -> int | None:
    """How many consecutive output channels share their taps, if they do and dense kernels are slower."""
    worth = topology.kept and topology.density <= DENSEST
    return height(topology, HEIGHTS) if worth else None


def frozen_weights(convolution: Convolution, topology: CSR, values: Tensor, *, grouped: bool) -> Frozen:
    """Kept weights for 16 images side by side, or 16 pixels: in blocks of output channels where they have them."""
    if high := sharing_channels(topology):
        return freeze_blocks(topology.crow, topology.col, values, convolution, high, grouped=grouped)
    prepared = prepare_conv(topology.crow.clone(), topology.col.clone(), convolution, "weight")
    return freeze_conv(values, prepared, grouped=grouped)
