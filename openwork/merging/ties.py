"""TIES: drop the small changes, let every weight vote on its sign, and average those that agree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from openwork.allocation import Allocation
from openwork.deltas import agreeing_mean
from openwork.merger import Merging
from openwork.method import method


@method(
    paper="Yadav et al., TIES-Merging: Resolving Interference When Merging Models, NeurIPS 2023, arXiv 2306.01708",
    kind="merge",
)
@dataclass(frozen=True, kw_only=True)
class TIES(Merging):
    """Trim, elect, merge: tasks that pull a weight in opposite directions do not average to nothing::

        trim    keep the largest fifth of each model's changes
        elect   the sign of a weight is that of the sum of what is left of all deltas
        merge   W = W0 + scale * mean of the changes that have this sign and are not zero

    Args:
        sparsity: 0.8, as in the paper, which keeps the largest 20 %.
        allocation: ``global``: the changes of a whole model are ranked together, as in the paper.
        scale: 1.

    With one model and ``sparsity=0`` it gives that model back, bit for bit. Parameters of one axis are not trimmed, but vote.
    """

    sparsity: float = 0.8
    allocation: str | Allocation = "global"

    def combine(self, changes: Sequence[Tensor]) -> Tensor:
        return agreeing_mean(changes)
