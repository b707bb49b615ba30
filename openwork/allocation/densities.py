"""The split from shapes alone, as densities up to a common factor: uniform, Erdos-Renyi, balanced."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from openwork.allocation.contract import Allocation
from openwork.allocation.counts import proportional
from openwork.grid import Shape


@dataclass(frozen=True)
class Densities(Allocation):
    """Base of the allocations that come from shapes alone: densities proportional to :meth:`raw`, cut at dense."""

    @abstractmethod
    def raw(self, shape: Shape) -> float:
        """The density of a parameter, up to a factor common to all."""

    def counts(
        self, shapes: Sequence[Shape], total: int, scores: Sequence[Tensor] | None = None
    ) -> list[int]:
        return proportional(
            [self.raw(shape) for shape in shapes], [math.prod(shape) for shape in shapes], total
        )


@dataclass(frozen=True)
class Uniform(Densities):
    """The same density everywhere."""

    def raw(self, shape: Shape) -> float:
        return 1.0


@dataclass(frozen=True)
class ER(Densities):
    """Erdos-Renyi: density proportional to ``(out + in) / (out * in)`` (Mocanu et al., 2018).

    Thin layers stay dense, wide ones become sparse. Kernel sizes do not count.
    """

    def raw(self, shape: Shape) -> float:
        return sum(shape[:2]) / math.prod(shape[:2])


@dataclass(frozen=True)
class ERK(Densities):
    """Erdos-Renyi with kernels: density proportional to ``(sum of the shape / product of the shape) ** power``
    (Evci et al., RigL, 2020).

    Args:
        power: 1 (default) is ERK, 0 is uniform.
    """

    power: float = 1.0

    def raw(self, shape: Shape) -> float:
        return float((sum(shape) / math.prod(shape)) ** self.power)


@dataclass(frozen=True)
class Balanced(Densities):
    """The same number of connections in every layer (Gadhikar et al., 2023).

    Unlike the published code, what a layer is too small to hold is given to the others, so the budget is met.
    """

    def raw(self, shape: Shape) -> float:
        return 1.0 / math.prod(shape)
