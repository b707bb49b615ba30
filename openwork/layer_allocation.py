"""How dense each layer of a trained network stays, from what its weights and its inputs look like.

An allocation of :mod:`openwork.allocation` knows shapes or the scores of single connections. These look at a whole layer first
and make a number of it, or a few; then they know the numbers of all layers. Give one to a calibrated method:
``ow.Wanda(sparsity=0.7, allocation=ow.OWL())``. The total is exact whatever the numbers are.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

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

        factor = _root(zeros, wanted, 0.0, 1.0 / min(relative) if min(relative) > 0 else 1e6)
        return [1.0 - min(factor * r, 1.0) for r in relative]


@dataclass(frozen=True)
class Redundancy(LayerAllocation):
    """ALS: layers whose outputs tell what other layers tell already become sparser. Experimental.

    The redundancy of a layer is how alike its outputs are to those of the other layers, on average over these (linear centred
    kernel alignment, between 0 and 1, which supposes that all layers see the same tokens in the same order). Densities then solve
    a linear programme: keep as little redundancy as possible for the total, no density further than ``reach`` from the average.
    Its solution is simple: the most redundant layers are as sparse as may be, the least redundant ones as dense, and one lies
    between.

    The paper's redundancy comes from estimates of mutual information, in blocks first and then inside them; this is the idea with
    a measure that needs no estimate. Layers that no token reaches are taken to be average.

    Args:
        reach: how far a density may be from the average; 0.08 as :class:`OWL`, since the paper's steps do not carry over.

    Li et al., Adaptive Layer Sparsity for Large Language Models via Activation Correlation Assessment, NeurIPS 2024.
    """

    reach: float = 0.08

    samples: ClassVar[int] = 256

    def measure(self, block: Sequence[Seen]) -> list[Tensor]:
        return [_similarities(seen.statistics.samples, seen.weight, self.samples) for seen in block]

    def counts(
        self, shapes: Sequence[Shape], total: int, scores: Sequence[Tensor] | None = None
    ) -> list[int]:
        sizes = [math.prod(shape) for shape in shapes]
        kernels = torch.stack([k.flatten() for k in self._found(shapes, scores, self.samples**2)])
        alike = kernels @ kernels.T
        seen = alike.diagonal() > 0
        others = (alike.sum(1) - alike.diagonal()) / max(int(seen.sum()) - 1, 1)
        redundancy = torch.where(seen, others, others[seen].mean() if bool(seen.any()) else 0.0)
        density = total / max(sum(sizes), 1)
        densities = least_redundant(redundancy.tolist(), sizes, density, self.reach)
        return exact_counts([d * size for d, size in zip(densities, sizes, strict=True)], sizes, total)


def _similarities(x: Tensor, weight: Tensor, tokens: int) -> Tensor:
    """Which tokens a layer's outputs say are alike, ``[tokens, tokens]`` of norm one (0 where nothing was seen): the inner
    product of two is their linear centred kernel alignment.
    """
    y = x[:tokens].double() @ weight.double().T
    y = y - y.mean(0) if len(y) else y
    kernel = torch.zeros(tokens, tokens, dtype=torch.float64, device=y.device)
    kernel[: len(y), : len(y)] = y @ y.T
    size = kernel.norm()
    return kernel / size if size > 0 else kernel


def least_redundant(
    redundancy: Sequence[float], sizes: Sequence[int], density: float, reach: float
) -> list[float]:
    """Densities that minimise ``sum size * density * redundancy`` with a mean (weighted by size) of ``density``, each within
    ``reach`` of it and in [0, 1].
    """
    low, high = max(density - reach, 0.0), min(density + reach, 1.0)
    found = [low] * len(sizes)
    left = (density - low) * sum(sizes)
    for i in sorted(range(len(sizes)), key=lambda i: (redundancy[i], i)):
        more = min(left, (high - low) * sizes[i])
        found[i] += more / max(sizes[i], 1)
        left -= more
    return found


@dataclass(frozen=True)
class Fluctuation(LayerAllocation):
    """FLAP's split: the inputs of all layers are ranked together, each by how far it is above the others of its layer.

    The fluctuation of an input, ``variance(x_j) ||W_j||^2``, differs by orders of magnitude between layers; what is compared is
    its distance from the mean of its layer, in standard deviations of the layer. The highest are kept, until the total is spent;
    an input costs as many weights as it has. For :class:`openwork.FLAP`.

    An et al., FLAP, AAAI 2024, arXiv 2312.11983.
    """

    def measure(self, block: Sequence[Seen]) -> list[Tensor]:
        return [seen.statistics.variance * seen.weight.double().square().sum(0) for seen in block]

    def counts(
        self, shapes: Sequence[Shape], total: int, scores: Sequence[Tensor] | None = None
    ) -> list[int]:
        measures = self._found(shapes, scores, None)
        inputs = [m.reshape(shape[1], -1).sum(1) for m, shape in zip(measures, shapes, strict=True)]
        costs = [math.prod(shape) // shape[1] for shape in shapes]
        ranked = torch.cat([_standardised(x) for x in inputs]).sort(descending=True, stable=True).indices
        layer_of = torch.repeat_interleave(torch.tensor([len(x) for x in inputs]))
        counts, left = [0] * len(shapes), total
        for layer in layer_of[ranked.cpu()].tolist():
            if costs[layer] > left:
                counts[layer] += left  # less than an input: rounded away
                break
            counts[layer] += costs[layer]
            left -= costs[layer]
        return counts


def _standardised(x: Tensor) -> Tensor:
    spread = x.std(correction=0)
    return (x - x.mean()) / spread if spread > 0 else torch.zeros_like(x)


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
