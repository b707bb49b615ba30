"""Keep the largest weights: the honest first baseline of the field."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import nn

from openwork.allocation import Allocation
from openwork.method import method
from openwork.pruner import Pruning
from openwork.scores import Batch, Loss, Scores, magnitude


@method(
    paper="Han et al., Learning both Weights and Connections, NeurIPS 2015, arXiv 1506.02626; "
    "Gupta et al., Is Complexity Required for Neural Network Pruning?, 2022, arXiv 2209.14624",
    kind="prune",
)
@dataclass(frozen=True, kw_only=True)
class Magnitude(Pruning):
    """Keep the connections of largest ``|w|``.

    Who competes with whom is said by the words every method shares:

    - within each layer: ``allocation="uniform"`` (default);
    - across all layers: ``allocation="global"``, with ``Global(floor=0.0005)`` for the paper's minimum of 0.05 % of the
      network in every layer, or ``allocation="lamp"``;
    - within each output unit: ``pattern="fan-in"``.

    Masks are nested: the mask of a higher sparsity is contained in that of a lower one (within a layer, or globally).
    """

    allocation: str | Allocation = "uniform"

    def scores(
        self, model: nn.Module, weights: Mapping[str, nn.Parameter], data: Iterable[Batch] | None, loss: Loss
    ) -> Scores:
        return {name: magnitude(weight) for name, weight in weights.items()}
