"""Blocks of consecutive outputs and inputs, kept or dropped whole."""

from __future__ import annotations

from dataclasses import dataclass

from openwork.grid import Grid, Shape
from openwork.patterns.contract import Pattern


@dataclass(frozen=True)
class Block(Pattern):
    """Blocks of ``height`` consecutive outputs times ``width`` consecutive inputs, kept or dropped whole.

    ``Block(r, 1)`` is a row block: ``r`` outputs share one list of inputs, which a CPU computes at nearly dense speed per
    weight (Elsen et al., Fast Sparse ConvNets, 2020).
    """

    height: int
    width: int

    def __post_init__(self) -> None:
        if min(self.height, self.width) < 1:
            raise ValueError(f"a block has at least 1 output and 1 input; got {self.height} x {self.width}")

    def misfit(self, shape: Shape) -> str | None:
        if len(shape) < 2:
            return "it needs an input axis"
        if shape[0] % self.height:
            return f"{shape[0]} outputs are no multiple of {self.height}"
        return f"{shape[1]} inputs are no multiple of {self.width}" if shape[1] % self.width else None

    def grid(self, shape: Shape) -> Grid:
        self._fitting(shape)
        split = (shape[0] // self.height, self.height, shape[1] // self.width, self.width, *shape[2:])
        return Grid(split, (), (0, 2, *range(4, len(split))), (1, 3))

    def __str__(self) -> str:
        return f"block {self.height}x{self.width}"
