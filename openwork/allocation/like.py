"""The split of another network."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from openwork.allocation.contract import Allocation
from openwork.allocation.counts import proportional
from openwork.grid import Shape


@dataclass(frozen=True)
class Like(Allocation):
    """The split of a topology that is there already: one that SNIP chose, that STR learned, or of a published network
    (Liu et al., 2022, call it the SNIP ratio).

    Args:
        densities: one a parameter, in order of appearance; for another total all are multiplied by one factor, and cut at dense.
    """

    densities: tuple[float, ...]

    def __post_init__(self) -> None:
        if not all(0.0 <= density <= 1.0 for density in self.densities):
            raise ValueError(f"densities are fractions in [0, 1]; got {list(self.densities)}")

    @classmethod
    def of(cls, masks: Mapping[str, Tensor]) -> Like:
        """The split of ``masks``, as every verb returns them."""
        return cls(tuple(float(mask.sum()) / mask.numel() for mask in masks.values()))

    def counts(
        self, shapes: Sequence[Shape], total: int, scores: Sequence[Tensor] | None = None
    ) -> list[int]:
        if len(shapes) != len(self.densities):
            raise ValueError(
                f"the split is that of {len(self.densities)} parameters, and there are {len(shapes)}: cover the same ones"
            )
        return proportional(self.densities, [math.prod(shape) for shape in shapes], total)
