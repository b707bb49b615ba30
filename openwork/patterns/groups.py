"""Whole channels."""

from __future__ import annotations

from dataclasses import dataclass

from openwork.grid import Grid, Shape
from openwork.patterns.contract import Pattern


@dataclass(frozen=True)
class Groups(Pattern):
    """Whole slices along one axis: ``Groups(0)`` output units or channels, ``Groups(1)`` inputs."""

    axis: int = 0

    def misfit(self, shape: Shape) -> str | None:
        return None if 0 <= self.axis < len(shape) else f"it has no axis {self.axis}"

    def grid(self, shape: Shape) -> Grid:
        self._fitting(shape)
        return Grid(shape, (), (self.axis,), tuple(a for a in range(len(shape)) if a != self.axis))

    def __str__(self) -> str:
        return f"groups {self.axis}"
