"""Top-KAST: compute with the strongest weights, train a few more, and never touch the rest."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from openwork.method import Method, check_fraction, method
from openwork.plan import Row
from openwork.sparsifier import Sparsifier
from openwork.train.dnw import DNW


@method(
    paper="Jayakumar et al., Top-KAST: Top-K Always Sparse Training, NeurIPS 2020, arXiv 2106.03517",
    kind="train",
)
@dataclass(frozen=True, kw_only=True)
class TopKAST(DNW):
    """Always sparse training, forward and backward, with a set of weights for each.

    In each parameter of ``N`` weights and density ``d``, chosen anew every ``every`` steps::

        A   the d N           largest |theta|:    forward   w = theta on A, 0 elsewhere
        B   the (d + margin) N largest |theta|:   backward  theta <- theta - lr * (dL/dw + penalty) on B, nothing elsewhere

        penalty  strength * theta on A,  strength / d * theta on B outside A

    The weights of ``B`` outside ``A`` are near misses: a gradient may lift them into the network. They are punished harder than
    those inside, so they must want it, and one that has come in stays, which keeps the choice from flickering. What is outside
    ``B`` keeps its value until those above it have shrunk.

    Args:
        margin: density of ``B`` above that of ``A``; 0.1 (the paper's pairs are 0.1 to 0.3 apart).
        strength: of the penalty; 1e-4.
        every: 100 steps (:class:`DNW` chooses at every one).
        until: part of the run after which ``B = A``: the topology may still change, but only among what it has; 1 (default)
            never. A number below 1 needs ``steps``.

    With ``margin=1`` and no penalty this is :class:`DNW`.

    Differences from the paper: none known in the algorithm. Masked places cost memory all the same, see :class:`DNW`.
    """

    margin: float = 0.1
    strength: float = 1e-4
    every: int = 100
    until: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fraction("margin", self.margin)
        check_fraction("until", self.until)
        if self.strength < 0:
            raise ValueError(f"strength is at least 0; got {self.strength}")

    def limits(self) -> Iterable[tuple[Method, Method]]:
        everything = dataclasses.replace(self, margin=1.0, strength=0.0, until=1.0)
        yield everything, everything.reduced_to(DNW)

    def attached(self, sparsifier: Sparsifier) -> None:
        for row, c in sparsifier.latents():
            c.sleep(c.strongest_latent(self._trained(row, 0)))

    def before_step(self, sparsifier: Sparsifier, step: int) -> None:
        for row, c in sparsifier.latents():
            gradient = c.weight.parameter.grad
            if gradient is not None and self.strength:
                inside, outside = self.strength, self.strength * row.numel / max(row.kept, 1)
                penalty = torch.where(c.inactive, outside * c.latent, inside * c.latent)
                gradient += penalty.masked_fill_(c.asleep, 0)

    def update(self, sparsifier: Sparsifier, step: int) -> None:
        chosen: list[tuple[Tensor, Tensor]] = []
        for row, c in sparsifier.latents():
            chosen.append((c.strongest_latent(row.kept), c.strongest_latent(self._trained(row, step))))
        for (_, c), (seen, trained) in zip(sparsifier.latents(), chosen, strict=True):
            c.replace(seen)
            c.sleep(trained)

    def _trained(self, row: Row, step: int) -> int:
        """How many weights have a gradient from ``step`` on."""
        if self.until < 1.0 and step >= math.floor(self.until * self.run_length + 1e-9):
            return row.kept
        return min(row.numel, row.kept + round(self.margin * row.numel))
