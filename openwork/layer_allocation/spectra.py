"""The heavier the tail of a layer's spectrum, the denser it stays."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from openwork.layer_allocation.contract import OneNumber, Seen, root


@dataclass(frozen=True)
class AlphaPruning(OneNumber):
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

        factor = root(zeros, wanted, 0.0, 1.0 / min(relative) if min(relative) > 0 else 1e6)
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
