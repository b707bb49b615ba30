"""A convolution whose weight is the product of two larger ones: wide while it trains, small afterwards."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class CollapsibleConv2d(nn.Module):
    """A convolution to ``p`` channels followed by one of a single tap, with nothing in between: together one convolution.

    It computes with the product, made anew in every pass, so that activations are those of the small convolution; gradients reach
    both factors, and are what two convolutions after one another would give::

        W[o, i, :, :] = sum over p of second[o, p] first[p, i, :, :]          (+ 1 in the middle where o == i, with residual)

    Args:
        first: ``[p, in, kh, kw]``.
        second: ``[out, p]``.
        bias: ``[out]``, or None.
        residual: whether the input is added to the output, as a part of the weight.
        stride, padding, dilation: as in ``nn.Conv2d``.
    """

    bias: nn.Parameter | None

    def __init__(
        self,
        first: Tensor,
        second: Tensor,
        bias: Tensor | None = None,
        *,
        residual: bool = False,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
    ) -> None:
        super().__init__()
        if first.dim() != 4 or second.dim() != 2 or second.shape[1] != first.shape[0]:
            raise ValueError(
                f"factors are [p, in, kh, kw] and [out, p]; got {list(first.shape)} and {list(second.shape)}"
            )
        if residual and not (first.shape[1] == second.shape[0] and all(k % 2 for k in first.shape[2:])):
            raise ValueError(
                f"an input can be added where there are as many outputs and the kernel has a middle; got "
                f"{first.shape[1]} inputs, {second.shape[0]} outputs and a kernel {list(first.shape[2:])}"
            )
        self.first, self.second = nn.Parameter(first.detach().clone()), nn.Parameter(second.detach().clone())
        self.register_parameter("bias", None if bias is None else nn.Parameter(bias.detach().clone()))
        self.residual = residual
        self.stride, self.padding, self.dilation = stride, padding, dilation

    def dense(self) -> Tensor:
        """``W [out, in, kh, kw]``, a new tensor; gradients of it reach the factors."""
        weight = torch.einsum("op,pihw->oihw", self.second, self.first)
        return weight + identity(weight) if self.residual else weight

    def forward(self, x: Tensor) -> Tensor:
        """``[n, in, h, w]`` to ``[n, out, h', w']``."""
        return nn.functional.conv2d(x, self.dense(), self.bias, self.stride, self.padding, self.dilation)

    @torch.no_grad()
    def collapsed(self) -> nn.Conv2d:
        """The ordinary convolution of the same weight and bias."""
        weight = self.dense()
        conv: nn.Conv2d = nn.utils.skip_init(
            nn.Conv2d,
            weight.shape[1],
            weight.shape[0],
            tuple(weight.shape[2:]),
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            bias=self.bias is not None,
            dtype=weight.dtype,
            device=weight.device,
        )
        conv.weight.copy_(weight)
        if self.bias is not None and conv.bias is not None:
            conv.bias.copy_(self.bias)
        return conv.train(self.training)

    def extra_repr(self) -> str:
        p, inputs, *kernel = self.first.shape
        return f"{inputs}, {len(self.second)}, kernel_size={tuple(kernel)}, expanded to {p}, residual={self.residual}"


def identity(weight: Tensor) -> Tensor:
    """The weight of the convolution that gives its input, in the shape of ``weight [c, c, kh, kw]``."""
    found = torch.zeros_like(weight)
    found[:, :, weight.shape[2] // 2, weight.shape[3] // 2].fill_diagonal_(1)
    return found
