"""A linear layer whose weight is not held as a matrix, but made of fewer numbers."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn


class StructuredLinear(nn.Module, ABC):
    """``y = x W^T + bias`` with a weight ``W`` that is a function of other, trainable numbers.

    Attributes:
        in_features, out_features: of the linear layer it stands for.
        bias: ``[out]``, or None.
    """

    bias: nn.Parameter | None

    def __init__(self, in_features: int, out_features: int, bias: Tensor | None) -> None:
        super().__init__()
        if in_features < 1 or out_features < 1:
            raise ValueError(f"a layer has inputs and outputs; got {in_features} and {out_features}")
        self.in_features, self.out_features = in_features, out_features
        self.register_parameter("bias", None if bias is None else nn.Parameter(bias.detach().clone()))

    @abstractmethod
    def product(self, x: Tensor) -> Tensor:
        """``x W^T``: ``[..., in] -> [..., out]``."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.product(x)
        return y if self.bias is None else y + self.bias

    def dense(self) -> Tensor:
        """``W [out, in]``, a new tensor that knows where it came from: gradients of it reach what it is made of."""
        some = next(self.parameters())
        return self.product(torch.eye(self.in_features, dtype=some.dtype, device=some.device)).T

    @property
    def numbers(self) -> int:
        """How many numbers the weight is made of."""
        return sum(p.numel() for name, p in self.named_parameters() if name != "bias")

    def extra_repr(self) -> str:
        return (
            f"{self.in_features}, {self.out_features}, bias={self.bias is not None}, numbers={self.numbers}"
        )
