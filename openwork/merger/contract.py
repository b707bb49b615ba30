"""What a method that merges fine-tuned models answers: what stays of a delta, and how several become one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from openwork.allocation import Allocation
from openwork.deltas import thinned
from openwork.method import Method
from openwork.patterns import pattern


@dataclass(frozen=True, kw_only=True)
class Merging(Method):
    """A method that merges fine-tuned models into the one they all began from.

    ``sparsity`` is the part of every delta that is dropped, counts are exact; ``pattern`` and ``allocation`` say which masks are
    legal and how what stays is split among parameters, ``overrides`` and ``exclude`` are of the same. Parameters of one axis
    (biases, norms) and those that are excluded keep their whole delta.

    Args:
        scale: what the merged delta is multiplied with before it is added to the base.
    """

    allocation: str | Allocation = "uniform"
    scale: float = 1.0

    @property
    def draws(self) -> bool:
        """Whether masks depend on shape, count and seed alone, so that they need not be stored."""
        return False

    def mask(self, change: Tensor, allowed: Tensor, kept: int, generator: torch.Generator) -> Tensor:
        """Which places of one delta stay: the largest by default.

        Args:
            change: the delta ``[out, in, *kernel]``.
            allowed: boolean, places that may change.
            kept: how many stay, as far as the pattern allows.
            generator: of this parameter of this model.
        """
        return self.choose(change.abs(), allowed, kept)

    def choose(self, scores: Tensor, allowed: Tensor, kept: int) -> Tensor:
        """The legal mask of the highest scores among the allowed places."""
        return pattern(self.pattern).choose(scores.masked_fill(~allowed, -math.inf), kept) & allowed

    def thin(self, name: str, change: Tensor, mask: Tensor, of: int) -> Tensor:
        """What is left of the delta of a parameter where ``mask`` is True; ``of`` places could have stayed."""
        return thinned(change, mask)

    def combine(self, changes: Sequence[Tensor]) -> Tensor:
        """One delta of several thinned ones: their sum by default."""
        return torch.stack(list(changes)).sum(0)
