"""The split from scores: the connections of all parameters ranked against one another."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from openwork.allocation.contract import Allocation
from openwork.allocation.counts import bisect, exact_counts
from openwork.grid import Shape, top_k


@dataclass(frozen=True)
class Global(Allocation):
    """The highest scores of the whole network, wherever they are (global magnitude pruning: Gupta et al., 2022).

    Args:
        floor: weights that every layer keeps at least, as a fraction of *all* weights of the network (the paper's MT, there in
            percent; 0 by default). Layers smaller than that stay dense, and the others are thinned by one common factor so that
            the total is exact. At extreme sparsity plain global ranking can empty a layer; a floor prevents that.
    """

    floor: float = 0.0
    needs_scores = True

    def counts(
        self, shapes: Sequence[Shape], total: int, scores: Sequence[Tensor] | None = None
    ) -> list[int]:
        ranked = _ranked_counts(_required(scores, "global"), total)
        sizes = [math.prod(shape) for shape in shapes]
        least = [min(math.floor(self.floor * sum(sizes)), size) for size in sizes]
        if all(count >= floor for count, floor in zip(ranked, least, strict=True)):
            return ranked
        if sum(least) > total:
            raise ValueError(
                f"a floor of {self.floor:g} reserves {sum(least)} connections, {total} were asked for in all: lower the floor"
            )

        def kept(factor: float) -> list[float]:
            return [max(floor, factor * count) for floor, count in zip(least, ranked, strict=True)]

        return exact_counts(kept(bisect(lambda factor: sum(kept(factor)), total)), sizes, total)


@dataclass(frozen=True)
class Deviation(Allocation):
    """One multiple of each layer's own standard deviation as threshold for all (class-distribution pruning: See et al., 2016).

    Scores are magnitudes, so a deviation is the root of their mean square. A ranking of the whole network in which no layer is
    thinned more because its weights are smaller.
    """

    needs_scores = True

    def counts(
        self, shapes: Sequence[Shape], total: int, scores: Sequence[Tensor] | None = None
    ) -> list[int]:
        return _ranked_counts([_standardised(s) for s in _required(scores, "deviation")], total)


def _standardised(scores: Tensor) -> Tensor:
    """Scores over the root mean square of those that are finite; what is gone stays at minus infinity."""
    alive = scores[scores.isfinite()].double()
    deviation = float(alive.square().mean().sqrt()) if alive.numel() else 0.0
    return scores.double() / deviation if deviation else scores.double()


@dataclass(frozen=True)
class LAMP(Allocation):
    """Global ranking of ``w**2 / (sum of all w'**2 >= w**2 in the layer)`` (Lee et al., 2021): no setting to tune.

    The largest weight of every layer scores 1, so no layer is emptied while the total is at least the number of layers.
    """

    needs_scores = True

    def counts(
        self, shapes: Sequence[Shape], total: int, scores: Sequence[Tensor] | None = None
    ) -> list[int]:
        return _ranked_counts([lamp_scores(s) for s in _required(scores, "lamp")], total)


def lamp_scores(scores: Tensor) -> Tensor:
    """LAMP scores ``[n]`` in float64, in descending order of ``scores`` (their order is all that allocation needs).

    Sums run from the large end, so that millions of tiny squares do not drown. Scores below zero have no mass, and
    minus infinity, the score of a connection that is gone, stays what it is.
    """
    ordered = scores.flatten().double().sort(descending=True).values
    squares = ordered.clamp(min=0).square()
    mass = squares.cumsum(0)
    return torch.where(mass > 0, squares / mass, 0.0).masked_fill(ordered == -math.inf, -math.inf)


def _required(scores: Sequence[Tensor] | None, name: str) -> Sequence[Tensor]:
    if scores is None:
        raise ValueError(
            f"allocation {name!r} ranks connections by score, and there are none here: give it to a method that has scores "
            "(such as Magnitude or GMP), or use 'erk' or 'uniform'"
        )
    return scores


def _ranked_counts(scores: Sequence[Tensor], total: int) -> list[int]:
    flat = torch.cat([s.flatten().double() for s in scores])
    if not 0 <= total <= flat.numel():
        raise ValueError(f"cannot keep {total} of {flat.numel()} connections")
    chosen = top_k(flat, total)
    return [int(part.sum()) for part in chosen.split([s.numel() for s in scores])]
