"""The same number of inputs for every output."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from openwork.grid import Grid, Shape
from openwork.patterns.contract import Pattern


@dataclass(frozen=True)
class FanIn(Pattern):
    """Constant fan-in: every output unit has the same number of inputs.

    Args:
        inputs: that number; None (default) takes it from the sparsity asked for, rounded down.
        idle: whether units may also have no inputs at all, as those that :class:`openwork.SRigL` gives up.
    """

    inputs: int | None = None
    idle: bool = False

    def misfit(self, shape: Shape) -> str | None:
        if len(shape) < 2:
            return "it needs an input axis"
        available = math.prod(shape[1:])
        if self.inputs is not None and not 0 <= self.inputs <= available:
            return f"a unit has {available} inputs, {self.inputs} were asked for"
        return None

    def grid(self, shape: Shape) -> Grid:
        self._fitting(shape)
        return Grid(shape, (0,), tuple(range(1, len(shape))), ())

    def places(self, shape: Shape, kept: int) -> int:
        return super().places(shape, kept) if self.inputs is None else self.inputs

    def allows(self, mask: Tensor) -> bool:
        fan_in = mask.flatten(1).sum(1)
        working = fan_in[fan_in > 0] if self.idle else fan_in
        return not len(working) or bool(
            (working == (working[0] if self.inputs is None else self.inputs)).all()
        )

    def __str__(self) -> str:
        return "fan-in" if self.inputs is None else f"fan-in {self.inputs}"
