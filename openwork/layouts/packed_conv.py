"""A convolution that was packed: for each number of images the layout that is fastest on this machine.

A batch norm behind a convolution only scales and shifts its outputs, so in inference it is folded into the weights: ``W' = W s``,
``b' = (b - mean) s + beta`` with ``s = gamma / sqrt(var + eps)`` for each output. Zeros stay zeros. Both layers keep their own
parameters all the same, so ``state_dict`` and files know nothing of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Self

import torch
from torch import Tensor, nn

from openwork.kernels.conv import Convolution
from openwork.layouts.conv import SparseConv2d, convolution_of
from openwork.layouts.conv_layout import ConvLayout, Size
from openwork.layouts.csr import CSR

Weights = tuple[CSR, Tensor, Tensor | None]
"""Connections, kept values and bias."""


class FoldedBatchNorm2d(nn.BatchNorm2d):
    """A batch norm that the convolution before it has taken over: it keeps its state and passes inputs through."""

    @classmethod
    def of(cls, norm: nn.BatchNorm2d) -> FoldedBatchNorm2d:
        """What takes the place of ``norm``; it shares its parameters and buffers."""
        folded = cls(
            norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats, device="meta"
        )
        folded._parameters.update(norm._parameters)
        folded._buffers.update(norm._buffers)
        return folded.eval()

    def forward(self, x: Tensor) -> Tensor:
        """``x`` itself."""
        return x


def connections_of(conv: nn.Conv2d) -> Weights:
    """What a convolution computes with; of a dense one, whatever is not zero."""
    bias = None if conv.bias is None else conv.bias.detach()
    if isinstance(conv, SparseConv2d):
        return conv.topology, conv.weight_values.detach(), bias
    weight = conv.weight.detach().flatten(1)
    mask = weight != 0
    return CSR.from_mask(mask), weight[mask], bias


def folded(weights: Weights, norm: nn.BatchNorm2d | None) -> Weights:
    """The weights of a convolution that does the work of ``norm`` as well."""
    if norm is None:
        return weights
    topology, values, bias = weights
    scale, shift = scale_and_shift(norm, bias)
    return topology, values * scale[topology.rows()].to(values.dtype), shift.to(values.dtype)


def scale_and_shift(norm: nn.BatchNorm2d, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """What ``norm`` multiplies each output of a convolution with ``bias`` by, and what it adds to it then."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = (norm.running_var + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.detach()
    shift = -norm.running_mean * scale if bias is None else (bias - norm.running_mean) * scale
    if norm.bias is not None:
        shift = shift + norm.bias.detach()
    return scale, shift


class PackedConv:
    """What the two packed convolutions have in common: the layouts, and keeping them up with the weights.

    Attributes:
        by_images: images in a call -> the layout measured fastest for them.
        activation: what is applied to the output.
        norm: the batch norm folded into it, if any.
    """

    by_images: Mapping[int, ConvLayout]
    activation: str
    norm: FoldedBatchNorm2d | None
    _fixed_bias: Tensor | None
    _versions: list[tuple[int, int]]
    _sizes: Mapping[int, Size]

    def _take(
        self, by_images: Mapping[Size, ConvLayout], activation: str, norm: FoldedBatchNorm2d | None
    ) -> Self:
        # Not registered as its submodule: the model has it in its own place.
        vars(self)["norm"] = norm
        self.activation = activation
        self.by_images = {size[0]: held for size, held in by_images.items()}
        self._sizes = {size[0]: size for size in by_images}
        self._fixed_bias = self._folded()[2]
        self._versions = self._now()
        return self

    def _folded(self) -> Weights:
        assert isinstance(self, nn.Conv2d)
        return folded(connections_of(self), self.norm)

    def _now(self) -> list[tuple[int, int]]:
        """How often each tensor was written to that the layouts were made from."""
        assert isinstance(self, nn.Module)
        tensors = [*self.parameters(), *self.buffers()]
        if self.norm is not None:
            tensors += [*self.norm.parameters(), *self.norm.buffers()]
        return [(t.data_ptr(), 0 if t.is_inference() else t._version) for t in tensors]

    @torch.no_grad()
    def refresh(self) -> None:
        """If another state was loaded, or the tensors were written to, hold what they say now."""
        if self._versions == self._now():
            return
        assert isinstance(self, nn.Conv2d)
        topology, values, self._fixed_bias = self._folded()
        convolution = convolution_of(self)
        self.by_images = {
            images: type(held).build(convolution, topology, values, self._sizes[images])
            for images, held in self.by_images.items()
        }
        self._versions = self._now()

    def _packed(self, x: Tensor) -> Tensor:
        """``activation(norm(conv(x)))``."""
        if x.requires_grad and torch.is_grad_enabled():
            raise RuntimeError(
                "a packed layer is for inference and gives no gradients: run it under torch.no_grad(), or train the model "
                "and pack it afterwards"
            )
        self.refresh()
        images = x if x.dim() == 4 else x[None]
        y = self._nearest(images.shape[0]).conv(images, self._fixed_bias, self.activation)
        return y if x.dim() == 4 else y[0]

    def _nearest(self, images: int) -> ConvLayout:
        """The layout measured at the nearest number of images, as a ratio."""
        return self.by_images[min(self.by_images, key=lambda n: abs(math.log(n / max(images, 1))))]

    def _told(self) -> str:
        return ", ".join(f"{images}: {held.name}" for images, held in self.by_images.items())


class PackedConv2d(PackedConv, SparseConv2d):  # type: ignore[misc]  # as SparseConv2d
    """A :class:`~openwork.layouts.conv.SparseConv2d` that computes inference in chosen layouts. Made by
    :func:`openwork.pack_`; parameters and ``state_dict`` are those of the sparse layer.
    """

    @classmethod
    def pack(
        cls,
        convolution: Convolution,
        weights: Weights,
        by_images: Mapping[Size, ConvLayout],
        activation: str,
        norm: FoldedBatchNorm2d | None,
    ) -> PackedConv2d:
        """A packed layer from what was measured; ``by_images`` must not be empty."""
        return (
            cls.from_values(convolution, *weights)
            .requires_grad_(False)
            .eval()
            ._take(by_images, activation, norm)
        )

    def forward(self, x: Tensor) -> Tensor:
        """As the layer, the norm folded into it and the activation behind it."""
        return self._packed(x)

    def extra_repr(self) -> str:
        """Sizes, density and layouts."""
        return f"{super().extra_repr()}, layouts={{{self._told()}}}"


class DenseConv2d(PackedConv, nn.Conv2d):
    """An ordinary ``nn.Conv2d`` that computes inference with the dense kernel that was measured fastest. Made by
    :func:`openwork.pack_` where no sparse layout wins.
    """

    @classmethod
    def pack(
        cls,
        conv: nn.Conv2d,
        by_images: Mapping[Size, ConvLayout],
        activation: str,
        norm: FoldedBatchNorm2d | None,
    ) -> DenseConv2d:
        """The layer that takes the place of ``conv``; it shares weight and bias with it."""
        c = convolution_of(conv)
        layer = cls(c.inputs, c.outputs, c.kernel, c.stride, c.padding, bias=False, device="meta")
        layer.weight, layer.bias = conv.weight, conv.bias
        return layer.requires_grad_(False).eval()._take(by_images, activation, norm)

    def forward(self, x: Tensor) -> Tensor:
        """As the layer, the norm folded into it and the activation behind it."""
        return self._packed(x)

    def extra_repr(self) -> str:
        """Sizes and layouts."""
        return f"{nn.Conv2d.extra_repr(self)}, layouts={{{self._told()}}}"
