"""Layers of low rank whose components have an order: any first few of them are a layer of their own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from openwork.factorization import truncated
from openwork.layouts.low_rank import LowRankLinear


class OrderedLinear(LowRankLinear):
    """``y = A[:, :w] (B[:w] x) + b``: a product of two factors of which, in training, only the first ``w`` components may count.

    Attributes:
        left: ``A [out, m]``, a parameter.
        right: ``B [m, in]``, a parameter.
        width: ``w`` in training mode; None for all. In evaluation mode all count.
    """

    width: int | None = None

    @classmethod
    def from_linear(cls, linear: nn.Linear) -> OrderedLinear:
        """A layer of full rank that computes what ``linear`` does: each factor gets the root of the singular values."""
        factors = truncated(linear.weight.detach(), min(linear.weight.shape))
        return cls(factors.left, factors.right, linear.bias).train(linear.training)

    def forward(self, x: Tensor) -> Tensor:
        """``x [..., in]`` to ``[..., out]``."""
        w = self.width if self.training else None
        return F.linear(F.linear(x, self.right[:w]), self.left[:, :w], self.bias)

    def plain(self) -> nn.Module:
        """The same layer without order: two factors where these are smaller than their product, else an ``nn.Linear``."""
        smaller = self.rank * (self.out_features + self.in_features) < self.out_features * self.in_features
        thin = LowRankLinear(self.left, self.right, self.bias).train(self.training)
        return thin if smaller else thin.merged()


class OrderedConv2d(nn.Module):
    """A convolution to ``m`` channels, then a ``1 x 1`` one, of which in training only the first ``w`` channels may count.

    Attributes:
        left: ``A [out, m]``, a parameter: the ``1 x 1`` convolution.
        right: ``B [m, in * kh * kw]``, a parameter: the first one.
        bias: ``[out]``, a parameter, or None.
        width: ``w`` in training mode; None for all.

    Args:
        conv: the convolution it stands for, in one group; not changed.
        left, right: the factors of its weight ``[out, in * kh * kw]``; copied.
    """

    width: int | None = None

    def __init__(self, conv: nn.Conv2d, left: Tensor, right: Tensor) -> None:
        super().__init__()
        if conv.groups != 1 or conv.padding_mode != "zeros" or isinstance(conv.padding, str):
            raise ValueError(
                f"{conv}: factors stand for a convolution in one group, padded with zeros by numbers"
            )
        self.left, self.right = (nn.Parameter(factor.detach().clone()) for factor in (left, right))
        self.bias = None if conv.bias is None else nn.Parameter(conv.bias.detach().clone())
        self.kernel = (conv.in_channels, *conv.kernel_size)
        self.stride, self.padding, self.dilation = conv.stride, conv.padding, conv.dilation

    @classmethod
    def from_conv(cls, conv: nn.Conv2d) -> OrderedConv2d:
        """A layer of full rank that computes what ``conv`` does."""
        matrix = conv.weight.detach().flatten(1)
        factors = truncated(matrix, min(matrix.shape))
        return cls(conv, factors.left, factors.right).train(conv.training)

    @property
    def rank(self) -> int:
        """Columns of ``A``."""
        return self.left.shape[1]

    @property
    def weight(self) -> Tensor:
        """``A B [out, in, kh, kw]``."""
        return (self.left @ self.right).view(-1, *self.kernel)

    def forward(self, x: Tensor) -> Tensor:
        """``x [n, in, height, width]`` to ``[n, out, ...]``."""
        w = self.width if self.training else None
        first = self.right[:w].view(-1, *self.kernel)
        hidden = F.conv2d(x, first, None, self.stride, self.padding, self.dilation)
        return F.conv2d(hidden, self.left[:, :w, None, None], self.bias)

    @torch.no_grad()
    def plain(self) -> nn.Module:
        """The same layer without order: two convolutions where these have fewer weights, else an ``nn.Conv2d``."""
        out, inputs = len(self.left), self.kernel[0]
        dense = self.rank * (out + self.right.shape[1]) >= out * self.right.shape[1]
        size: Any = self.kernel[1:]
        geometry: dict[str, Any] = {"stride": self.stride, "padding": self.padding, "dilation": self.dilation}
        biased, width = self.bias is not None, out if dense else self.rank
        first = nn.Conv2d(inputs, width, size, bias=dense and biased, device="meta", **geometry)
        first.weight = nn.Parameter(self.weight if dense else self.right.view(-1, *self.kernel).clone())
        last = first if dense else nn.Conv2d(self.rank, out, 1, bias=biased, device="meta")
        if not dense:
            last.weight = nn.Parameter(self.left[:, :, None, None].clone())
        if self.bias is not None:
            last.bias = nn.Parameter(self.bias.clone())
        found = first if dense else nn.Sequential(first, last)
        return found.train(self.training)

    def extra_repr(self) -> str:
        """Sizes."""
        return f"{self.kernel[0]}, {len(self.left)}, kernel={self.kernel[1:]}, rank={self.rank}, bias={self.bias is not None}"


Ordered = OrderedLinear | OrderedConv2d
