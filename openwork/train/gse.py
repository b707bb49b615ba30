"""GSE: RigL that looks for large gradients only at a sample of places, so that nothing dense is ever computed."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from openwork.connections import Connections
from openwork.grid import top_k
from openwork.growth import Gradient, Growth, Site, free_at_random
from openwork.method import Method, method
from openwork.patterns import Unstructured, pattern
from openwork.positions import ascending, located, merged, reached, where
from openwork.processes import averaged
from openwork.schedules import Cosine, Scalar
from openwork.sparsifier import Sparsifier
from openwork.train.rigl import RigL
from openwork.train.set import SET

Guide = Literal["grabo", "graest", "uniform"]
"""What draws the sample of places, see :class:`GSE`."""


@dataclass(frozen=True)
class Sampled(Growth):
    """The largest ``|gradient|`` among candidates that are drawn at random, guided by the activations.

    Args:
        guide: see :class:`GSE`.
        gamma: draws for each connection of the parameter; infinite = every place is a candidate.
    """

    needs = frozenset({"gradient", "activations"})

    guide: Guide = "grabo"
    gamma: float = 1.0

    def places(self, site: Site, taken: Tensor, vacant: Tensor, generator: torch.Generator) -> Tensor:
        k = int(vacant.sum())
        kept, places = taken.numel() + k, site.grid.atoms
        if math.isinf(self.gamma) or 2 * kept > places:
            return Gradient().places(site, taken, vacant, generator)
        candidates = self._drawn(site, math.ceil(self.gamma * kept), generator)
        candidates = candidates[where(~located(taken, candidates)[1])]
        if (missing := k - candidates.numel()) > 0:
            occupied = merged(taken, candidates)
            candidates = merged(candidates, free_at_random(occupied, places, missing, generator))
        scores = site.gradient_at(candidates)
        if not bool(scores.isfinite().all()):
            raise FloatingPointError("the gradients that growth ranks hold NaN or infinity")
        return candidates[where(top_k(scores, k))]

    def _drawn(self, site: Site, draws: int, generator: torch.Generator) -> Tensor:
        """Sorted candidates: pairs of an output and an input that are drawn independently, repeats removed."""
        outputs, inputs = site.grid.split[0], site.grid.atoms // site.grid.split[0]
        seed = int(torch.randint(2**62, (1,), generator=generator))
        for_input, for_output = self._weights(site, outputs, inputs, torch.Generator().manual_seed(seed))
        rows = _draw(for_output, draws, generator)
        places = rows * inputs + _draw(for_input, draws, generator)
        distinct: Tensor = ascending(places).unique_consecutive()
        return distinct.to(site.device)

    def _weights(
        self, site: Site, outputs: int, inputs: int, signs: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        of_inputs, of_outputs = (torch.zeros(size, dtype=torch.float64) for size in (inputs, outputs))
        if self.guide != "uniform":
            for x, dy in site.activations():
                sign = (torch.randint(2, (len(x), 1), generator=signs) * 2 - 1).to(x)
                for total, features in ((of_inputs, x), (of_outputs, dy)):
                    summed = features.abs().sum(0) if self.guide == "grabo" else (features * sign).sum(0)
                    total += summed.to(total)
        return averaged(of_inputs.to(site.device)).abs().cpu(), averaged(
            of_outputs.to(site.device)
        ).abs().cpu()


def _draw(weights: Tensor, draws: int, generator: torch.Generator) -> Tensor:
    """Indices drawn in proportion to weights, with replacement; uniformly where nothing has a weight."""
    ends = weights.cumsum(0)
    total = float(ends[-1])
    if not math.isfinite(total):
        raise FloatingPointError("the activations that guide growth hold NaN or infinity")
    if total == 0.0:
        return torch.randint(weights.numel(), (draws,), generator=generator)
    at = torch.rand(draws, generator=generator, dtype=torch.float64) * total
    return reached(ends, at).clamp_(max=int(weights.nonzero()[-1]))


@method(
    paper="Heddes et al., Always-Sparse Training by Growing Connections with Guided Stochastic Exploration, 2024, "
    "arXiv 2401.06898",
    kind="train",
)
@dataclass(frozen=True, kw_only=True)
class GSE(RigL):
    """Guided stochastic exploration: grow the largest gradients among a sample of places, in time and memory of the kept ones.

    At an update, in each parameter with ``n`` connections and gradient ``G = sum_b dy_b x_b^T``::

        draw  gamma n pairs (i, j), i with probability p_out(i), j with p_in(j), and compute G at these alone
        drop  the floor(a n) smallest |w|
        grow  the floor(a n) largest |G_ij| of the sample

        grabo    p_in(j) ~ sum_b |x_bj|,        p_out(i) ~ sum_b |dy_bi|        (a bound of |G_ij|)
        graest   p_in(j) ~ |sum_b s_b x_bj|,    p_out(i) ~ |sum_b s_b dy_bi|    with random signs s_b (an estimate of it)
        uniform  every place is equally likely

    Parameters that keep more than half of their connections use every place. With ``gamma`` infinite this is RigL with the
    same schedule.

    Args:
        guide: ``grabo``.
        gamma: 1; more candidates come closer to RigL.
        drop: 0.2 falling to zero along a cosine until ``until``, as in the paper.
        every: 1000 steps, as in the paper.
        until: 0.6 of the run, as in the paper.
        grow: ``gradient``, what candidates are ranked by; nothing else makes sense here.

    Differences from the authors' code: connections dropped at the same update may be drawn and grown again, as in RigL; where a
    sample has too few free places it is filled up at random; the guides see the whole batch instead of ten samples a class; and
    in masked training, layers that are no ``nn.Linear`` are guided by the sums of ``|G|`` over outputs, because
    their activations are not matrices.
    """

    guide: Guide = "grabo"
    gamma: float = 1.0
    drop: Scalar = Cosine(start=0.2, stop=0.0, until=0.6)
    every: int = 1000
    until: float = 0.6

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.guide not in ("grabo", "graest", "uniform"):
            raise ValueError(f"unknown guide {self.guide!r}: choose grabo, graest or uniform")
        if not self.gamma > 0:
            raise ValueError(
                f"gamma is how many candidates are drawn for each connection, more than 0; got {self.gamma}"
            )
        if self.grow != "gradient":
            raise ValueError(f"gse ranks its candidates by gradient; for grow={self.grow!r} use RigL")
        if not isinstance(pattern(self.pattern), Unstructured):
            raise ValueError(f"gse draws single connections; for pattern {self.pattern!r} use RigL")

    @property
    def growth_needs(self) -> frozenset[str]:
        return Sampled.needs

    def growth_in(self, connections: Connections, sparsifier: Sparsifier, step: int) -> Growth:
        return Sampled(self.guide, self.gamma)

    def limits(self) -> Iterable[tuple[Method, Method]]:
        yield from SET.limits(self)
        yield dataclasses.replace(self, gamma=math.inf), self.reduced_to(RigL)
