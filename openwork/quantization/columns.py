"""Quantise column by column, as a sweep over the columns of a weight asks for it.

A quantiser of this page answers the two questions of :func:`openwork.reconstruction.sweep.sweep`: fit the placement of a group
just before its first column, and give one column its values. It remembers codes and placements.
"""

from __future__ import annotations

import torch
from torch import Tensor

from openwork.quantization.grids import Grid, Placement
from openwork.quantization.grouped import Group, Quantized, fit, groups_of


class ColumnQuantizer:
    """Rounds to a grid whose placements are fitted group by group, to the weights as they then are.

    Args:
        grid: the levels.
        shape: ``(out, in)`` of the weight.
        group: who shares a placement. A whole tensor cannot be fitted on the way and needs ``at``.
        at: placements ``[out, groups]`` fitted beforehand (static groups); ``[1, 1]`` for a whole tensor.
        group_of: int64 ``[in]``, the group of each column for ``at``, where columns come in another order.
        like: dtype and device.
    """

    def __init__(
        self,
        grid: Grid,
        shape: tuple[int, int],
        group: Group,
        at: Placement | None = None,
        group_of: Tensor | None = None,
        *,
        like: Tensor,
    ) -> None:
        rows, columns = shape
        self.grid, self.group = grid, group if isinstance(group, int) else 0
        if at is None and group == "tensor":
            raise ValueError("a whole tensor has one placement, which must be known before its first column")
        self.fixed = at is not None
        self.group_of = groups_of(columns, group).to(like.device) if group_of is None else group_of
        if at is None:
            empty = like.new_zeros(rows, int(self.group_of[-1]) + 1 if columns else 0)
            at = Placement(empty, empty.clone())
        self.at = Placement(at.scale.to(like), at.zero.to(like))
        self.codes = torch.zeros(rows, columns, dtype=torch.uint8, device=like.device)

    def fit(self, weights: Tensor, mask: Tensor, first: int) -> None:
        """Fit the placement of the group that begins at column ``first``; pruned weights count as the zeros they become."""
        if not self.fixed:
            self._place(int(self.group_of[first]), self.grid.fit(torch.where(mask, weights, 0)))

    def column(self, weights: Tensor, mask: Tensor, index: int, pivot: float) -> Tensor:
        """The nearest levels to the weights of one column ``[out]``."""
        at = self.at[:, self.group_of[index]]
        codes = self.grid.encode(weights, at)
        self.codes[:, index] = codes
        return self.grid.decode(codes, at)

    def _place(self, group: int, at: Placement) -> None:
        self.at.scale[:, group], self.at.zero[:, group] = at.scale, at.zero

    def result(self, order: Tensor | None = None) -> Quantized:
        """What was quantised.

        Args:
            order: where each column that was seen stands in the weight, int64 ``[in]``; in order if None.
        """
        place = torch.arange(self.codes.shape[1]) if order is None else order
        codes, group_of = torch.empty_like(self.codes), torch.empty_like(self.group_of)
        codes[:, place], group_of[place] = self.codes, self.group_of
        return Quantized(self.grid, codes, self.at, group_of).single()


def static(weight: Tensor, grid: Grid, group: Group, order: Tensor) -> tuple[Placement, Tensor]:
    """Placements fitted before a sweep, to neighbours in the weight itself, and the group of each column in its ``order``."""
    return fit(weight, grid, group), groups_of(weight.shape[1], group).to(weight.device)[order]
