"""The split from where a layer stands: first, last, or how deep."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from openwork.allocation.contract import Allocation
from openwork.allocation.counts import bisect, exact_counts, proportional
from openwork.grid import Shape


@dataclass(frozen=True)
class UniformPlus(Allocation):
    """Uniform, except that the first convolution is dense and the last layer keeps at least a fifth (Gale et al., 2019).

    Args:
        last: least density of the last layer; 0.2 as in the source.
    """

    last: float = 0.2

    def counts(
        self, shapes: Sequence[Shape], total: int, scores: Sequence[Tensor] | None = None
    ) -> list[int]:
        sizes = [math.prod(shape) for shape in shapes]
        fixed: dict[int, int] = {}
        if len(shapes) > 1 and len(shapes[0]) > 2:
            fixed[0] = sizes[0]
        if len(shapes) > 1 and total < self.last * sum(sizes):
            fixed[len(sizes) - 1] = round(self.last * sizes[-1])
        left = total - sum(fixed.values())
        free = [i for i in range(len(sizes)) if i not in fixed]
        if left < 0:
            raise ValueError(
                f"uniform_plus keeps {sum(fixed.values())} connections in the first and last layer alone, {total} were asked "
                "for in all: use allocation='erk' or a lower sparsity"
            )
        rest = dict(zip(free, proportional([1.0] * len(free), [sizes[i] for i in free], left), strict=True))
        return [fixed.get(i, rest.get(i, 0)) for i in range(len(sizes))]


@dataclass(frozen=True)
class Pyramid(Allocation):
    """Density ``x ** l`` for the l-th layer from the input, with the ``x`` that meets the total (Liu et al., 2022)."""

    def counts(
        self, shapes: Sequence[Shape], total: int, scores: Sequence[Tensor] | None = None
    ) -> list[int]:
        sizes = [math.prod(shape) for shape in shapes]

        def kept(x: float) -> list[float]:
            return [size * x ** (depth + 1) for depth, size in enumerate(sizes)]

        return exact_counts(kept(bisect(lambda x: sum(kept(x)), total)), sizes, total)
