"""A linear layer that rounds its inputs to a float grid before it multiplies."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from openwork.quantization import FloatGrid, Placement


class RoundedInputLinear(nn.Linear):
    """``y = q(x * 2^r) W^T + b``: inputs shifted by whole powers of two and rounded to one grid with one scale.

    The weight is that of the shifted inputs, columns times ``2^-r``, which is exact. It simulates the arithmetic of hardware with
    such floats, bit for bit up to the order of sums; it is not faster.

    Attributes:
        grid: of the inputs; only the scale is fitted.
        input_scale: buffer, one number.
        input_shift: buffer, int8 ``[in]``, ``r >= 0``.
    """

    grid: FloatGrid
    input_scale: Tensor
    input_shift: Tensor

    @classmethod
    def around(cls, linear: nn.Linear, grid: FloatGrid, scale: Tensor, shift: Tensor) -> Self:
        """The layer that ``linear``, whose weight has been shifted and rounded, becomes; it shares weight and bias with it."""
        layer = cls(linear.in_features, linear.out_features, bias=False, device="meta")
        layer.weight, layer.bias, layer.grid = linear.weight, linear.bias, grid
        device = linear.weight.device
        layer.register_buffer("input_scale", scale.detach().to(device=device, dtype=torch.float32, copy=True))
        layer.register_buffer("input_shift", shift.detach().to(device=device, dtype=torch.int8, copy=True))
        return layer.train(linear.training)

    def beside(self) -> tuple[FloatGrid, Tensor, Tensor]:
        """What :meth:`around` takes beside the linear layer."""
        return self.grid, self.input_scale, self.input_shift

    def forward(self, x: Tensor) -> Tensor:
        """``x [..., in]`` to ``[..., out]``."""
        return F.linear(
            rounded_inputs(x, self.grid, self.input_scale, self.input_shift), self.weight, self.bias
        )

    def extra_repr(self) -> str:
        """Sizes and the grid of the inputs."""
        return f"{super().extra_repr()}, inputs={self.grid.name}"


def rounded_inputs(x: Tensor, grid: FloatGrid, scale: Tensor, shift: Tensor) -> Tensor:
    """``q(x * 2^r)`` for ``x [..., in]``, of the dtype of ``x``."""
    shifted = torch.ldexp(
        x.float() if x.dtype in (torch.float16, torch.bfloat16) else x, shift.to(torch.int32)
    )
    at = Placement(scale.to(shifted), torch.zeros((), dtype=shifted.dtype, device=x.device))
    return grid.round(shifted, at).to(x.dtype)
