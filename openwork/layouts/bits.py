"""A weight made of bits, each the sign of a trainable number."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from openwork.layouts.structured import StructuredLinear


class BitLinear(StructuredLinear):
    """``W = scale * (-1)^sign * sum of 2^i b_i`` with bits ``b = 1[x > 0]`` of latent numbers ``x``, all of them trained.

    Args:
        latents: ``[1 + magnitude bits, out, in]``: the sign bit, then the magnitude bits from the lowest to the highest.
        scale: of the layer; fixed.
        frozen: which of the planes never change, bool ``[1 + magnitude bits]``; none by default.
        bias: ``[out]``, or None.
    """

    def __init__(
        self, latents: Tensor, scale: float, frozen: Tensor | None = None, bias: Tensor | None = None
    ) -> None:
        super().__init__(latents.shape[2], latents.shape[1], bias)
        if len(latents) < 2:
            raise ValueError(
                f"a weight has a sign bit and at least one magnitude bit; got {len(latents)} in all"
            )
        self.latents = torch.nn.Parameter(latents.clone())
        self.register_buffer("scale", torch.tensor(scale, dtype=latents.dtype, device=latents.device))
        self.register_buffer(
            "frozen", torch.zeros(len(latents), dtype=torch.bool) if frozen is None else frozen.clone()
        )
        self.scale: Tensor
        self.frozen: Tensor

    @property
    def bits(self) -> int:
        """Bits of a weight, its sign included."""
        return len(self.latents)

    def dense(self) -> Tensor:
        weight: Tensor = _Bits.apply(self.latents, self.scale, self.frozen)  # type: ignore[no-untyped-call]
        return weight

    def product(self, x: Tensor) -> Tensor:
        return x @ self.dense().T

    def integers(self) -> Tensor:
        """The weight in units of ``scale``: int64 ``[out, in]``, from ``1 - 2^k`` to ``2^k - 1`` for ``k`` magnitude bits."""
        return _integers(self.latents)

    @classmethod
    def drawn(
        cls,
        shape: tuple[int, int],
        bits: int,
        generator: torch.Generator,
        *,
        trained: int | None = None,
        bias: Tensor | None = None,
    ) -> BitLinear:
        """Random bits for a weight of ``shape``, at the scale at which its standard deviation is ``sqrt(2 / inputs)`` (He).

        Args:
            shape: ``(out, in)``.
            bits: of a weight, sign included.
            generator: of the latent numbers, ``N(0, 0.01^2)``.
            trained: how many of the leading bits are trained, the sign first; the others keep their random values. All by
                default.
            bias: ``[out]``, or None.
        """
        latents = 0.01 * torch.randn(bits, *shape, generator=generator)
        # of a uniform integer below n = 2^k, the mean square is (n - 1) (2n - 1) / 6
        levels = 2.0 ** (bits - 1)
        scale = math.sqrt(2.0 / shape[1]) / math.sqrt((levels - 1) * (2 * levels - 1) / 6)
        frozen = torch.zeros(bits, dtype=torch.bool)
        if trained is not None:
            frozen[1 : max(1, bits - trained + 1)] = True
            frozen[0] = trained < 1
        return cls(latents, scale, frozen, bias)


class _Bits(torch.autograd.Function):
    """The weight, with the gradient of each bit's value handed to its latent number as if the step were a line.

    The slope ``2^i`` is divided by that of the highest bit, so that no plane sees larger gradients than a plain weight.
    """

    @staticmethod
    def forward(ctx: Any, latents: Tensor, scale: Tensor, frozen: Tensor) -> Tensor:
        ctx.save_for_backward(latents, scale, frozen)
        return _integers(latents).to(latents.dtype) * scale

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,), (latents, scale, frozen) = gradients, ctx.saved_tensors
        signed = torch.where(latents[0] > 0, -gradient, gradient) * scale
        highest = 2.0 ** (len(latents) - 2)
        planes = torch.stack([signed * (2.0**i / highest) for i in range(len(latents) - 1)])
        sign = -2.0 / highest * _magnitudes(latents).to(gradient.dtype) * gradient * scale
        found = torch.cat([sign.unsqueeze(0), planes])
        return found.masked_fill(frozen.view(-1, 1, 1), 0), None, None


def _magnitudes(latents: Tensor) -> Tensor:
    weights = 2 ** torch.arange(len(latents) - 1, device=latents.device)
    return ((latents[1:] > 0) * weights.view(-1, 1, 1)).sum(0)


def _integers(latents: Tensor) -> Tensor:
    magnitude = _magnitudes(latents)
    return torch.where(latents[0] > 0, -magnitude, magnitude)
