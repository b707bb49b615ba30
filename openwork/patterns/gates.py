"""One mask for all gates of a recurrent layer."""

from __future__ import annotations

from dataclasses import dataclass

from openwork.grid import Grid, Shape
from openwork.patterns.contract import Pattern


@dataclass(frozen=True)
class Gates(Pattern):
    """The same mask for each of ``count`` gates whose weights are stacked along the outputs: 4 in an LSTM, 3 in a GRU.

    A connection between two units leaves or stays in all gates at once, so that the recurrent matrix is one graph between units.
    """

    count: int

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"a layer has at least 1 gate; got {self.count}")

    def misfit(self, shape: Shape) -> str | None:
        if len(shape) < 2:
            return "it needs an input axis"
        return f"{shape[0]} outputs are no multiple of {self.count} gates" if shape[0] % self.count else None

    def grid(self, shape: Shape) -> Grid:
        self._fitting(shape)
        split = (self.count, shape[0] // self.count, *shape[1:])
        return Grid(split, (), tuple(range(1, len(split))), (0,))

    def __str__(self) -> str:
        return f"gates {self.count}"
