"""SNIP: before training, keep what the loss would notice."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from openwork.allocation import Allocation
from openwork.method import method
from openwork.pruner import Pruning
from openwork.scores import Batch, Loss, Scores, snip


@method(
    paper="Lee et al., SNIP: Single-shot Network Pruning Based on Connection Sensitivity, ICLR 2019, arXiv 1810.02340",
    kind="prune",
)
@dataclass(frozen=True, kw_only=True)
class SNIP(Pruning):
    """Keep the connections of largest ``|w * dL/dw|`` at initialisation, ranked over the whole network.

    One batch of about 10 samples a class is enough. ``rounds > 1`` scores and cuts repeatedly, which avoids emptied layers at
    extreme sparsity (iterative SNIP).
    """

    before_training: ClassVar[bool] = True
    splits: ClassVar[bool] = True

    allocation: str | Allocation = "global"

    def scores(
        self, model: nn.Module, weights: Mapping[str, nn.Parameter], data: Iterable[Batch] | None, loss: Loss
    ) -> Scores:
        return snip(model, weights, () if data is None else data, loss)
