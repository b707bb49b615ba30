"""What an allocation sees of a layer, and what it says of all."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from torch import Tensor

from openwork.allocation import Allocation, exact_counts
from openwork.grid import Shape
from openwork.statistics import Statistics


class Seen(NamedTuple):
    """One layer of a block, and what it reads.

    Attributes:
        weight: ``[out, in]``, dense.
        statistics: of its inputs.
    """

    weight: Tensor
    statistics: Statistics


@dataclass(frozen=True)
class LayerAllocation(Allocation):
    """Base of the allocations that look at each layer first."""

    needs_scores = True
    samples: ClassVar[int] = 0
    """How many tokens themselves :meth:`measure` reads, beside sums over all."""

    @abstractmethod
    def measure(self, block: Sequence[Seen]) -> list[float] | list[Tensor]:
        """What there is to know of each layer of a block, from its dense weights and the inputs they read in the dense model."""

    def _found(
        self, shapes: Sequence[Shape], scores: Sequence[Tensor] | None, numbers: int | None
    ) -> Sequence[Tensor]:
        """The measures, once it is sure that they are measures: so many numbers each (None: as many as a row has weights)."""
        sizes = [math.prod(shape[1:]) if numbers is None else numbers for shape in shapes]
        if scores is None or [s.numel() for s in scores] != sizes:
            raise ValueError(
                f"{type(self).__name__} measures the layers of a trained network on data: give it to a calibrated method, such "
                "as Wanda, and that to sparsify_ with data="
            )
        return scores


@dataclass(frozen=True)
class OneNumber(LayerAllocation):
    """Base of the allocations that make one number of each layer."""

    @abstractmethod
    def measure(self, block: Sequence[Seen]) -> list[float]:
        """One number for each layer of a block, from its dense weights and the inputs they read in the dense model."""

    @abstractmethod
    def densities(self, measures: Sequence[float], sizes: Sequence[int], density: float) -> list[float]:
        """The density of each layer, from the numbers of all; their mean weighted by size is ``density``."""

    def counts(
        self, shapes: Sequence[Shape], total: int, scores: Sequence[Tensor] | None = None
    ) -> list[int]:
        sizes = [math.prod(shape) for shape in shapes]
        measures = [float(s) for s in self._found(shapes, scores, 1)]
        densities = self.densities(measures, sizes, total / max(sum(sizes), 1))
        return exact_counts([d * size for d, size in zip(densities, sizes, strict=True)], sizes, total)


def root(rising: Callable[[float], float], target: float, low: float, high: float) -> float:
    """Where a rising function reaches ``target``, between ``low`` and ``high``."""
    for _ in range(200):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if rising(middle) < target else (low, middle)
    return 0.5 * (low + high)
