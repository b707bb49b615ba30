"""Soft movement pruning: a weight stays while its score is above a threshold, and each parameter finds its own sparsity."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

from openwork.allocation import Allocation
from openwork.connections import LatentConnections
from openwork.method import Method, check_fraction, method
from openwork.patterns import Unstructured, pattern
from openwork.sparsifier import Sparsifier
from openwork.train.gmp import GMP
from openwork.train.movement import Movement


@method(
    paper="Sanh, Wolf, Rush, Movement Pruning: Adaptive Sparsity by Fine-Tuning, NeurIPS 2020, arXiv 2005.07683",
    kind="train",
)
@dataclass(frozen=True, kw_only=True)
class SoftMovement(Movement):
    """Soft movement pruning: scores are pulled down all the time, and the loss holds up those it needs.

    Between ``begin`` and ``until`` the network sees a weight if its score is above a threshold, and pays for every score::

        M = sigmoid(S) > tau          loss + penalty * mean of sigmoid(S)

    so the split among parameters is learned. How sparse that makes it cannot be asked for: at ``until`` the best scores of all
    parameters stay, exactly as many as asked for, and from then on it is :class:`Movement` with its count constant.

    Args:
        tau: the threshold; 0.1 as in the authors' runs.
        penalty: weight of the mean of ``sigmoid(S)`` over all scores; 400 as in the authors' runs.
        allocation: ``global``, as thresholds compare the scores of all parameters.

    Differences from the authors' code: the penalty is constant from ``begin`` on, and the count is made exact.
    """

    tau: float = 0.1
    penalty: float = 400.0
    allocation: str | Allocation = "global"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fraction("tau", self.tau)
        if self.penalty < 0:
            raise ValueError(f"penalty is at least 0; got {self.penalty}")

    def limits(self) -> Iterable[tuple[Method, Method]]:
        if isinstance(pattern(self.pattern), Unstructured):
            dense = dataclasses.replace(self, sparsity=0.0, kept=None, overrides={}, tau=0.0)
            yield dense, dense.reduced_to(GMP)

    def slope(self, sparsifier: Sparsifier, c: LatentConnections, gradient: Tensor, step: int) -> Tensor:
        slope = super().slope(sparsifier, c, gradient, step)
        first, last = self._window
        if not first <= step <= last:
            return slope
        share = self.scores(sparsifier, c).sigmoid()
        total = sum(other.numel for other in sparsifier.connections.values())
        return slope + self.penalty / total * share * (1 - share)

    def unseen(self, c: LatentConnections) -> Tensor:
        seen = c.fading()
        return c.inactive if seen is None else c.inactive | (seen == 0)

    def update(self, sparsifier: Sparsifier, step: int) -> None:
        if step < self._window[1]:
            for _, c in sparsifier.latents():
                c.fade(self.scores(sparsifier, c).sigmoid() <= self.tau, 0.0)
            return
        chosen = self.chosen(sparsifier, 1.0)
        for row, c in sparsifier.latents():
            c.fade(c.inactive, 1.0)
            c.replace(chosen[row.name])

    def measures(self, sparsifier: Sparsifier) -> Mapping[str, float]:
        return {
            f"density that the network sees of {row.name}": float((c.values != 0).sum()) / row.numel
            for row, c in sparsifier.latents()
        }
