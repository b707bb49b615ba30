"""Linear layers with a low-rank term: instead of the weight, or beside it.

Both are made of ordinary parameters and ordinary matrix products: they train, save and load as any module does, and run on any
device.
"""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from openwork.layouts.csr import described
from openwork.layouts.structured import StructuredLinear


class LowRankLinear(StructuredLinear):
    """``y = A (B x) + b``: a linear layer whose weight is the product of two thin matrices.

    It holds ``k (out + in)`` weights where a dense layer holds ``out * in``, and computes in that proportion.

    Attributes:
        left: ``A [out, k]``, a parameter.
        right: ``B [k, in]``, a parameter.
        bias: ``[out]``, a parameter, or None.

    Args:
        left, right: the factors; copied.
        bias: ``[out]`` or None; copied.
    """

    def __init__(self, left: Tensor, right: Tensor, bias: Tensor | None = None) -> None:
        _check_factors(left, right)
        super().__init__(right.shape[1], left.shape[0], bias)
        self.left, self.right = (nn.Parameter(factor.detach().clone()) for factor in (left, right))

    @property
    def rank(self) -> int:
        """Columns of ``A``."""
        return self.left.shape[1]

    @property
    def weight(self) -> Tensor:
        """``A B [out, in]``, computed anew for whoever asks; gradients flow through it."""
        return self.dense()

    def dense(self) -> Tensor:
        return self.left @ self.right

    def product(self, x: Tensor) -> Tensor:
        return F.linear(F.linear(x, self.right), self.left)

    def forward(self, x: Tensor) -> Tensor:
        """``x [..., in]`` to ``[..., out]``; the bias joins the second product."""
        return F.linear(F.linear(x, self.right), self.left, self.bias)

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """An ordinary ``nn.Linear`` of the same weight and bias."""
        return _linear(self.weight, self.bias, self.training)

    def extra_repr(self) -> str:
        """Sizes."""
        return f"{super().extra_repr()}, rank={self.rank}"


class CompensatedLinear(nn.Linear):
    """``y = W x + A (B x) + b``: a compressed weight, and a low-rank term that makes up for what it lost.

    ``weight`` is the compressed weight alone, so its zeros stay zeros; merging the product into it would fill them.

    Attributes:
        left: ``A [out, k]``, a parameter.
        right: ``B [k, in]``, a parameter.
    """

    left: nn.Parameter
    right: nn.Parameter

    @classmethod
    def around(cls, linear: nn.Linear, left: Tensor, right: Tensor) -> Self:
        """The layer that ``linear`` becomes with a term beside it; it shares weight and bias with it.

        Raises:
            ValueError: the factors do not fit.
        """
        _check_factors(left, right)
        if (left.shape[0], right.shape[1]) != (linear.out_features, linear.in_features):
            raise ValueError(
                f"a layer {linear.out_features} x {linear.in_features} takes factors of its shape; got {described(left)} "
                f"and {described(right)}"
            )
        layer = cls(linear.in_features, linear.out_features, bias=False, device="meta")
        layer.weight, layer.bias = linear.weight, linear.bias
        like = linear.weight
        layer.left, layer.right = (
            nn.Parameter(factor.detach().to(like, copy=True)) for factor in (left, right)
        )
        return layer.train(linear.training)

    def beside(self) -> tuple[Tensor, Tensor]:
        """What :meth:`around` takes beside the linear layer."""
        return self.left.detach(), self.right.detach()

    def forward(self, x: Tensor) -> Tensor:
        """``x [..., in]`` to ``[..., out]``."""
        return super().forward(x) + F.linear(F.linear(x, self.right), self.left)

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """An ordinary ``nn.Linear`` of weight ``W + A B``, which is no longer sparse."""
        return _linear(self.weight + self.left @ self.right, self.bias, self.training)

    def extra_repr(self) -> str:
        """Sizes."""
        return f"{super().extra_repr()}, rank={self.left.shape[1]}"


def _check_factors(left: Tensor, right: Tensor) -> None:
    if left.dim() != 2 or right.dim() != 2 or left.shape[1] != right.shape[0]:
        raise ValueError(f"factors are [out, k] and [k, in]; got {described(left)} and {described(right)}")


def _linear(weight: Tensor, bias: Tensor | None, training: bool) -> nn.Linear:
    dense = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
    dense.weight = nn.Parameter(weight.detach().clone())
    if bias is not None:
        dense.bias = nn.Parameter(bias.detach().clone())
    return dense.train(training)
