"""Rounding that is learned: weights on a grid, differentiable in what decides where they land.

Each class is a module whose call gives the weight ``[out, in]`` that a layer computes with while it is tuned, and whose
:meth:`~Learned.hardened` gives the codes at the end. Pruned weights are exactly zero throughout: zero points are levels, and
stay.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor, nn

from openwork.quantization.grids import Grid, Placement
from openwork.quantization.grouped import Quantized
from openwork.quantization.integers import IntegerGrid, stored

STRETCH = (-0.1, 1.1)
"""``gamma`` and ``zeta`` of the stretched sigmoid of AdaRound: it reaches 0 and 1."""

LEAST_SCALE = 1e-8
"""Scales do not fall below this."""


class Learned(nn.Module):
    """A weight on an integer grid, in the course of tuning.

    Args:
        grid: an integer grid with a level at zero.
        at: placements ``[out, groups]`` to begin with; only the scales are learned.
        group_of: int64 ``[in]``.
        mask: boolean ``[out, in]``, True = kept.

    Raises:
        ValueError: the grid is of another kind.
    """

    group_of: Tensor
    mask: Tensor
    zero: Tensor

    def __init__(self, grid: Grid, at: Placement, group_of: Tensor, mask: Tensor) -> None:
        super().__init__()
        if not isinstance(grid, IntegerGrid) or not grid.holds_zero:
            raise ValueError(f"rounding is learned on integer grids with a level at zero, not on {grid}")
        self.grid = grid
        self.scale = nn.Parameter(at.scale.detach().clone())
        self.register_buffer("zero", at.zero.detach().clone())
        self.register_buffer("group_of", group_of)
        self.register_buffer("mask", mask)

    @property
    def spread_scale(self) -> Tensor:
        """The scale of each weight ``[out, in]``, positive, with gradients."""
        return self.scale.clamp(min=LEAST_SCALE)[:, self.group_of]

    @property
    def spread_zero(self) -> Tensor:
        """The zero point of each weight ``[out, in]``."""
        return self.zero[:, self.group_of]

    @abstractmethod
    def steps(self) -> Tensor:
        """Codes ``[out, in]`` as real numbers, with gradients."""

    @abstractmethod
    def hard_steps(self) -> Tensor:
        """Codes as they are in the end, whole numbers."""

    def decoded(self, steps: Tensor) -> Tensor:
        """The weight of codes, zero where pruned."""
        return torch.where(self.mask, (steps - self.spread_zero) * self.spread_scale, 0)

    def forward(self) -> Tensor:
        """The weight ``[out, in]`` while it is tuned."""
        return self.decoded(self.steps())

    @torch.no_grad()
    def hardened(self) -> Quantized:
        """What the weight is in the end, with scales as the grid stores them."""
        steps = torch.where(self.mask, self.hard_steps(), self.spread_zero)
        scale = stored(self.scale.detach().clamp(min=LEAST_SCALE), self.grid.scales)
        at = Placement(scale, self.zero.clone())
        return Quantized(self.grid, steps.to(torch.uint8), at, self.group_of).single()


class StraightThrough(Learned):
    """Rounded forward, as if it were not backward: ``clamp(round(w / s + z))`` with latent weights ``w``.

    Args:
        weight: ``[out, in]``, to begin with.
        grid, at, group_of, mask: see :class:`Learned`.
    """

    def __init__(self, weight: Tensor, grid: Grid, at: Placement, group_of: Tensor, mask: Tensor) -> None:
        super().__init__(grid, at, group_of, mask)
        self.weight = nn.Parameter(torch.where(mask, weight, 0))

    def _real(self) -> Tensor:
        assert isinstance(self.grid, IntegerGrid)
        return (self.weight / self.spread_scale + self.spread_zero).clamp(0, self.grid.top)

    def steps(self) -> Tensor:
        real = self._real()
        return real + (real.round() - real).detach()

    def hard_steps(self) -> Tensor:
        return self._real().round()


class LowRankRounding(Learned):
    """Up or down is learned, as the product of two thin matrices: ``floor(w / s) + h(V0 + A1 A2)``.

    ``h`` is the sigmoid stretched to (-0.1, 1.1) and clipped to [0, 1]; ``V0`` is where it gives the fraction ``w / s`` has, so
    that the weight begins as it was. In the end ``h > 0.5`` decides.

    Args:
        weight: ``[out, in]``.
        grid, at, group_of, mask: see :class:`Learned`.
        rank: of ``A1 A2``.
        generator: of the initial ``A1``; ``A2`` begins at zero.

    Paper: Ding et al., CBQ, ICLR 2025, arXiv 2312.07950; Nagel et al., AdaRound, ICML 2020, arXiv 2004.10568.
    """

    floor: Tensor
    offset: Tensor

    def __init__(
        self,
        weight: Tensor,
        grid: Grid,
        at: Placement,
        group_of: Tensor,
        mask: Tensor,
        rank: int,
        generator: torch.Generator,
    ) -> None:
        super().__init__(grid, at, group_of, mask)
        rows, columns = weight.shape
        real = torch.where(mask, weight, 0) / self.spread_scale.detach()
        self.register_buffer("floor", real.floor())
        self.register_buffer("offset", unsqueezed(real - real.floor()))
        first = torch.randn(rows, rank, generator=generator, dtype=torch.float64) / max(1, rank) ** 0.5
        self.left = nn.Parameter(first.to(weight))
        self.right = nn.Parameter(weight.new_zeros(rank, columns))

    def rounding(self) -> Tensor:
        """``h``, from 0 (down) to 1 (up), ``[out, in]``."""
        return squeezed(self.offset + self.left @ self.right)

    def _clamped(self, up: Tensor) -> Tensor:
        assert isinstance(self.grid, IntegerGrid)
        return (self.floor + up + self.spread_zero).clamp(0, self.grid.top)

    def steps(self) -> Tensor:
        return self._clamped(self.rounding())

    def hard_steps(self) -> Tensor:
        return self._clamped((self.rounding() > 0.5).to(self.floor))

    def undecided(self, power: float) -> Tensor:
        """Mean over kept weights of ``1 - |2h - 1|^power``: zero once every ``h`` is 0 or 1."""
        open_ = 1 - (2 * self.rounding() - 1).abs().pow(power)
        return (open_ * self.mask).sum() / self.mask.sum().clamp(min=1)


def squeezed(v: Tensor) -> Tensor:
    """``h(v) = clamp(sigmoid(v) * 1.2 - 0.1, 0, 1)``."""
    low, high = STRETCH
    return (torch.sigmoid(v) * (high - low) + low).clamp(0, 1)


def unsqueezed(h: Tensor) -> Tensor:
    """The ``v`` with ``h(v) = h``."""
    low, high = STRETCH
    return torch.logit((h - low) / (high - low))
