"""The more a layer's outputs tell what those of other layers tell, the sparser it becomes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from openwork.allocation import exact_counts
from openwork.grid import Shape
from openwork.layer_allocation.contract import LayerAllocation, Seen


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
