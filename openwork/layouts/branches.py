"""Layers side by side whose outputs are summed."""

from __future__ import annotations

from torch import Tensor, nn


class Branches(nn.Module):
    """``y = sum of branch(x)``.

    Args:
        branches: at least one, all from the same inputs to outputs of the same shape.
    """

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        if not branches:
            raise ValueError("a sum of branches has at least one")
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        first, *others = self.branches
        y: Tensor = first(x)
        for branch in others:
            y = y + branch(x)
        return y
