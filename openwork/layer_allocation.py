"""How dense each layer of a trained network stays, from what its weights and its inputs look like.

An allocation of :mod:`openwork.allocation` knows shapes or the scores of single connections. These look at a whole layer first
and make one number of it; then they know the numbers of all layers. Give one to a calibrated method:
``ow.Wanda(sparsity=0.7, allocation=ow.OWL())``. The total is exact whatever the numbers are.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from openwork.allocation import Allocation, exact_counts
from openwork.patterns import Shape
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
    """Base of the allocations that make one number of each layer."""

    needs_scores = True

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
        if scores is None or any(s.numel() != 1 for s in scores):
            raise ValueError(
                f"{type(self).__name__} measures the layers of a trained network on data: give it to a calibrated method, such "
                "as Wanda, and that to sparsify_ with data="
            )
        densities = self.densities([float(s) for s in scores], sizes, total / max(sum(sizes), 1))
        return exact_counts([d * size for d, size in zip(densities, sizes, strict=True)], sizes, total)


@dataclass(frozen=True)
class OWL(LayerAllocation):
    """Outlier-weighed layers: the more outliers among a block's Wanda scores, the denser the block.

    ``r = 100 * mean(score > threshold * mean(score))`` over all layers of a block, which then share a density: ``r`` of all
    blocks stretched to ``[0, 2 * reach]`` and shifted to the total. Where all ``r`` are equal, all densities are.

    Args:
        threshold: how many times the mean makes an outlier; 5 as in the source (or 7).
        reach: how far a density may be from the average; 0.08 as in the source for 70 %. Little to gain at 50 %.

    Yin et al., Outlier Weighed Layerwise Sparsity, ICML 2024, arXiv 2310.05175. Densities are balanced by size, so that the total
    holds for layers of any sizes.
    """

    threshold: float = 5.0
    reach: float = 0.08

    def measure(self, block: Sequence[Seen]) -> list[float]:
        scores = [seen.weight.abs() * seen.statistics.squares.sqrt().to(seen.weight.dtype) for seen in block]
        numel = sum(s.numel() for s in scores)
        mean = sum(float(s.double().sum()) for s in scores) / max(numel, 1)
        outliers = sum(int((s > self.threshold * mean).sum()) for s in scores)
        return [100.0 * outliers / max(numel, 1)] * len(block)

    def densities(self, measures: Sequence[float], sizes: Sequence[int], density: float) -> list[float]:
        low, high = min(measures), max(measures)
        stretched = [2 * self.reach * (m - low) / (high - low) if high > low else 0.0 for m in measures]
        return _shifted(stretched, sizes, density)


@dataclass(frozen=True)
class AlphaPruning(LayerAllocation):
    """Heavy tails stay: the heavier the tail of a layer's spectrum, the better it is trained, and the denser it stays.

    The tail exponent ``alpha`` of the eigenvalues of ``W^T W`` is estimated by Hill's estimator over the upper half of them;
    sparsity rises linearly with it, from ``1 - reach`` to ``1 + reach`` times a factor that meets the total.

    Args:
        reach: 0.3 as in the source.

    Lu et al., AlphaPruning, NeurIPS 2024, arXiv 2410.10912.
    """

    reach: float = 0.3

    def measure(self, block: Sequence[Seen]) -> list[float]:
        return [hill_exponent(seen.weight) for seen in block]

    def densities(self, measures: Sequence[float], sizes: Sequence[int], density: float) -> list[float]:
        finite = [m for m in measures if math.isfinite(m)] or [1.0]
        low, high = min(finite), max(finite)
        measures = [min(m, high) for m in measures]
        slope = 2 * self.reach / (high - low) if high > low else 0.0
        relative = [1.0 - self.reach + slope * (m - low) if slope else 1.0 for m in measures]
        wanted = (1.0 - density) * sum(sizes)

        def zeros(factor: float) -> float:
            return sum(size * min(factor * r, 1.0) for size, r in zip(sizes, relative, strict=True))

        factor = _root(zeros, wanted, 0.0, 1.0 / min(relative) if min(relative) > 0 else 1e6)
        return [1.0 - min(factor * r, 1.0) for r in relative]


def hill_exponent(weight: Tensor) -> float:
    """Tail exponent ``1 + k / sum_{i <= k} log(l_i / l_{k + 1})`` of the eigenvalues ``l_1 >= l_2 >= ...`` of ``W^T W``.

    ``k`` is half of those that are not zero. Heavier tails have smaller exponents; infinite where the tail is flat, or nothing
    but one eigenvalue.
    """
    values = torch.linalg.svdvals(weight.double()).square()
    values = values[values > values[0] * 1e-12] if len(values) else values
    k = len(values) // 2
    if k < 1 or len(values) < 2:
        return math.inf
    spread = float((values[:k] / values[k]).log().sum())
    return 1.0 + k / spread if spread > 0 else math.inf


def _shifted(above: Sequence[float], sizes: Sequence[int], density: float) -> list[float]:
    """``above`` moved by one number so that the mean weighted by size is ``density``, each cut to [0, 1]."""

    def at(shift: float) -> list[float]:
        return [min(max(a + shift, 0.0), 1.0) for a in above]

    def kept(shift: float) -> float:
        return sum(size * d for size, d in zip(sizes, at(shift), strict=True))

    return at(_root(kept, density * sum(sizes), -max(above) - 1e-9, 1.0 - min(above)))


def _root(rising: Callable[[float], float], target: float, low: float, high: float) -> float:
    """Where a rising function reaches ``target``, between ``low`` and ``high``."""
    for _ in range(200):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if rising(middle) < target else (low, middle)
    return 0.5 * (low + high)
