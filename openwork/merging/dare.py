"""DARE: drop most changes at random and rescale the rest: a fine-tuned model is its base and a very thin delta."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Literal

import torch
from torch import Tensor

from openwork.deltas import agreeing_mean, thinned
from openwork.merger import Merging
from openwork.method import method
from openwork.scores import uniform


@method(
    paper="Yu et al., Language Models are Super Mario, ICML 2024, arXiv 2311.03099 (DARE); Deng et al., DARE the Extreme, "
    "ICLR 2025, arXiv 2410.09344 (DAREx-q)",
    kind="merge",
)
@dataclass(frozen=True, kw_only=True)
class DARE(Merging):
    """Drop a random part of every delta and divide what is left by the part that is kept, ``q = kept / of``::

        delta <- M * delta / q,    M random        E over M of the new delta = the old one

    Redundant as the changes of fine-tuning are, nine of ten may go. At 99 % the noise of ``1 / q`` takes over: then a larger
    divisor helps, up to 1 (DAREx-q, see :mod:`openwork.merging.rescaling`), or dropping the smallest changes instead, which wins
    where deltas are large.

    A mask depends on the seed and the parameter's name alone: :func:`openwork.save_delta` stores no indices.

    Args:
        sparsity: part that is dropped, the paper's ``p``; exactly so many in each parameter, where the paper draws every place
            on its own. A pattern drops whole blocks, columns or groups.
        rescale: the divisor; ``q`` by default, and 1 where the smallest are dropped.
        rescales: glob of parameter names -> their own divisor, as :func:`openwork.merging.rescaling.bounded` finds one a layer.
        drop: ``random``, or ``smallest``: importance instead of chance, as ``|delta|`` has it, or ``|delta| * |input|`` where
            ``inputs`` are given to :func:`openwork.merge_`.
        combine_by: how several models become one: ``sum``, or ``ties``: elected signs and the mean of those that agree.
        scale: 1; with ``sum``, 0.3 to 1 for several models.
    """

    rescale: float | None = None
    rescales: Mapping[str, float] = field(default_factory=dict)
    drop: Literal["random", "smallest"] = "random"
    combine_by: Literal["sum", "ties"] = "sum"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.drop not in ("random", "smallest"):
            raise ValueError(f"drop is random or smallest; got {self.drop!r}")
        if self.combine_by not in ("sum", "ties"):
            raise ValueError(f"combine_by is sum or ties; got {self.combine_by!r}")
        for divisor in (self.rescale, *self.rescales.values()):
            if divisor is not None and not 0.0 < divisor <= 1.0:
                raise ValueError(f"rescale and rescales are divisors in (0, 1]; got {divisor}")

    @property
    def draws(self) -> bool:
        return self.drop == "random"

    def mask(self, change: Tensor, allowed: Tensor, kept: int, generator: torch.Generator) -> Tensor:
        if self.drop == "smallest":
            return super().mask(change, allowed, kept, generator)
        return self.choose(uniform(change, generator), allowed, kept)

    def thin(self, name: str, change: Tensor, mask: Tensor, of: int) -> Tensor:
        own = [q for glob, q in self.rescales.items() if fnmatchcase(name, glob)]
        share = int(mask.sum()) / max(1, of) if self.drop == "random" else 1.0
        return thinned(change, mask, own[-1] if own else self.rescale or share or 1.0)

    def combine(self, changes: Sequence[Tensor]) -> Tensor:
        return agreeing_mean(changes) if self.combine_by == "ties" else super().combine(changes)
