"""The inputs of all layers ranked together, each in the units of its layer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from openwork.grid import Shape
from openwork.layer_allocation.contract import LayerAllocation, Seen


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
