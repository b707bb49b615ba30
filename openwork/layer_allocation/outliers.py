"""The more outliers a block has, the denser it stays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from openwork.layer_allocation.contract import OneNumber, Seen, root


@dataclass(frozen=True)
class OWL(OneNumber):
    """Outlier-weighed layers: the more outliers among a block's Wanda scores, the denser the block.

    ``r = 100 * mean(score > threshold * mean(score))`` over all layers of a block, which then share a density: ``r`` of all
    blocks stretched to ``[0, 2 * reach]`` and shifted to the total. Where all ``r`` are equal, all densities are.

    Args:
        threshold: how many times the mean makes an outlier; 5 as in the source (or 7).
        reach: how far a density may be from the average; 0.08 as in the source for 70 %. Little to gain at 50 %.

    With ``pattern="n:8"`` each layer has an n of its own; the authors then take a threshold of 6 and a reach of 2 in 8, 0.25.

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


def _shifted(above: Sequence[float], sizes: Sequence[int], density: float) -> list[float]:
    """``above`` moved by one number so that the mean weighted by size is ``density``, each cut to [0, 1]."""

    def at(shift: float) -> list[float]:
        return [min(max(a + shift, 0.0), 1.0) for a in above]

    def kept(shift: float) -> float:
        return sum(size * d for size, d in zip(sizes, at(shift), strict=True))

    return at(root(kept, density * sum(sizes), -max(above) - 1e-9, 1.0 - min(above)))
