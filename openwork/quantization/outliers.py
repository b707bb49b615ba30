"""Outliers: the few weights that cost most when they are rounded stay as they are.

A weight is an outlier where rounding it would cost ``((w - q) / U[j, j])^2`` more than a threshold, the measure in which a sweep
counts. What is likely to be one is found before the scales of its group are fitted, by leaving out one weight after the other,
so that it does not stretch the range of the rest.

Paper: Dettmers et al., SpQR, ICLR 2024, arXiv 2306.03078.
"""

from __future__ import annotations

import torch
from torch import Tensor

from openwork.quantization.columns import ColumnQuantizer
from openwork.quantization.grids import Grid, Placement
from openwork.quantization.two_level import TwoLevel, two_level

LARGEST = torch.finfo(torch.float16).max


class OutlierQuantizer(ColumnQuantizer):
    """A :class:`ColumnQuantizer` that keeps outliers in sixteen bits and quantises its own statistics.

    The code of an outlier is that of zero, so the weight is the decoded codes plus the outliers.

    Args:
        grid: the levels; they hold zero.
        shape: ``(out, in)``.
        group: columns that share a placement.
        threshold: cost above which a weight is an outlier; infinity for none.
        pivots: ``diag U [in]``.
        stat_bits: bits of a scale and of a zero, or None to store both as the grid does.
        stat_rows: consecutive rows that share the placement of their statistics.
        like: dtype and device.
    """

    def __init__(
        self,
        grid: Grid,
        shape: tuple[int, int],
        group: int,
        threshold: float,
        pivots: Tensor,
        stat_bits: int | None,
        stat_rows: int,
        *,
        like: Tensor,
    ) -> None:
        super().__init__(grid, shape, group, like=like)
        self.threshold, self.pivots = threshold, pivots
        self.stat_bits, self.stat_rows = stat_bits, stat_rows
        self.outlier = torch.zeros(shape, dtype=torch.bool, device=like.device)
        self.values = like.new_zeros(shape)
        self.statistics: list[TwoLevel] = []
        """Of each group in turn, its quantised scales and zeros ``[out, 1]``."""

    def fit(self, weights: Tensor, mask: Tensor, first: int) -> None:
        """Fit a placement to the weights of a group that are not likely to be outliers, and quantise it."""
        weights = torch.where(mask, weights, 0)
        if self.threshold < torch.inf and weights.shape[1] > 1:
            likely = (
                left_out_gain(weights, self.grid, self.pivots[first : first + weights.shape[1]])
                > self.threshold
            )
            rest = (~likely).sum(1, keepdim=True).clamp(min=1)
            weights = torch.where(
                likely, torch.where(likely, 0, weights).sum(1, keepdim=True) / rest, weights
            )
        at = self.grid.fit(weights)
        if self.stat_bits is not None:
            column = Placement(at.scale[:, None], at.zero[:, None])
            self.statistics.append(two_level(column, self.stat_bits, self.stat_rows))
            at = self.statistics[-1].placement()[:, 0]
        self._place(int(self.group_of[first]), at)

    def column(self, weights: Tensor, mask: Tensor, index: int, pivot: float) -> Tensor:
        """The nearest levels, and outliers as sixteen bits hold them."""
        found = super().column(weights, mask, index, pivot)
        outlier = ((weights - found) / pivot).square() > self.threshold
        kept = weights.clamp(-LARGEST, LARGEST).half().to(weights.dtype)
        outlier &= kept != 0
        at = self.at[:, self.group_of[index]]
        self.codes[:, index] = torch.where(
            outlier, self.grid.encode(torch.zeros_like(weights), at), self.codes[:, index]
        )
        self.outlier[:, index], self.values[:, index] = outlier, torch.where(outlier, kept, 0)
        return torch.where(outlier, kept, found)


def left_out_gain(weights: Tensor, grid: Grid, pivots: Tensor) -> Tensor:
    """How much less the other weights of a group cost when one is left out of the fit: ``err(all) - err(others)``.

    ``err = sum ((w - q(w)) / U[j, j])^2``; with all weights fitted, over all of them, and with one left out, over the others.

    Args:
        weights: of a group, ``[out, n]`` with n at least 2.
        grid: the levels.
        pivots: ``U[j, j]`` of the group's columns, ``[n]``.

    Returns:
        ``[out, n]``, for each weight what leaving it out gains.
    """
    n = weights.shape[1]
    others = torch.arange(n * n, device=weights.device).view(n, n)  # row k: every column but k
    others = (others % n)[~torch.eye(n, dtype=torch.bool, device=weights.device)].view(n, n - 1)
    without = weights[:, others]
    return _cost(weights, grid, pivots)[:, None] - _cost(without, grid, pivots[others])


def _cost(values: Tensor, grid: Grid, pivots: Tensor) -> Tensor:
    at = grid.fit(values)
    error = values - grid.round(values, Placement(at.scale.unsqueeze(-1), at.zero.unsqueeze(-1)))
    return (error / pivots).square().sum(-1)
