"""Any mask."""

from __future__ import annotations

from dataclasses import dataclass

from openwork.grid import Grid, Shape
from openwork.patterns.contract import Pattern


@dataclass(frozen=True)
class Unstructured(Pattern):
    """Any mask: every weight competes with every other weight of its parameter."""

    def misfit(self, shape: Shape) -> str | None:
        return None

    def grid(self, shape: Shape) -> Grid:
        return Grid(shape, (), tuple(range(len(shape))), ())

    def __str__(self) -> str:
        return "unstructured"
