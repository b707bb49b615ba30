"""n of every m inputs."""

from __future__ import annotations

from dataclasses import dataclass

from openwork.grid import Grid, Shape
from openwork.patterns.contract import Pattern


@dataclass(frozen=True)
class NM(Pattern):
    """Exactly ``keep`` of every ``of`` consecutive inputs, for each output (and each kernel position).

    ``NM(2, 4)``, written ``"2:4"``, keeps 2 of every 4. The count does not depend on the sparsity asked for elsewhere.
    """

    keep: int
    of: int

    def __post_init__(self) -> None:
        if not 0 <= self.keep <= self.of or self.of < 1:
            raise ValueError(
                f"NM keeps `keep` of every `of` inputs, 0 <= keep <= of; got keep={self.keep}, of={self.of}"
            )

    def misfit(self, shape: Shape) -> str | None:
        if len(shape) < 2:
            return "it needs an input axis"
        return f"{shape[1]} inputs are no multiple of {self.of}" if shape[1] % self.of else None

    def grid(self, shape: Shape) -> Grid:
        self._fitting(shape)
        split = (shape[0], shape[1] // self.of, self.of, *shape[2:])
        return Grid(split, (0, 1, *range(3, len(split))), (2,), ())

    def places(self, shape: Shape, kept: int) -> int:
        return self.keep

    def __str__(self) -> str:
        return f"{self.keep}:{self.of}"


@dataclass(frozen=True)
class AnyNM(Pattern):
    """n of every ``of`` consecutive inputs, with an n of its own for each weight: the nearest to what an allocation gives it.

    Written ``"n:8"``. With ``allocation="uniform"`` and half of the weights it is ``4:8`` everywhere; an allocation that looks at
    the layers makes ``3:8`` of one and ``5:8`` of another, each as fast as such a pattern is. A plan names the n of each.
    """

    of: int

    def __post_init__(self) -> None:
        if self.of < 1:
            raise ValueError(f"n of every `of` inputs, of >= 1; got of={self.of}")

    def misfit(self, shape: Shape) -> str | None:
        return NM(0, self.of).misfit(shape)

    def grid(self, shape: Shape) -> Grid:
        return NM(0, self.of).grid(shape)

    def places(self, shape: Shape, kept: int) -> int:
        rows = self.grid(shape).rows
        return min((2 * kept + rows) // (2 * rows), self.of) if rows else 0

    def settled(self, shape: Shape, kept: int) -> NM:
        return NM(self.places(shape, kept), self.of)

    def __str__(self) -> str:
        return f"n:{self.of}"
