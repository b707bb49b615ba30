"""GraSP: before training, keep what lets the gradient flow."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from openwork.allocation import Allocation
from openwork.method import method
from openwork.pruner import Pruning
from openwork.scores import Batch, Loss, Scores, grasp


@method(
    paper="Wang et al., Picking Winning Tickets Before Training by Preserving Gradient Flow, ICLR 2020, arXiv 2002.07376",
    kind="prune",
)
@dataclass(frozen=True, kw_only=True)
class GraSP(Pruning):
    """Keep the connections of largest ``w * (H g)`` at initialisation, ranked over the whole network.

    ``g`` is the gradient and ``H`` the Hessian of the loss at logits divided by ``temperature``. Use 10 to 25 samples a class.

    Args:
        temperature: 200, as in the paper.
    """

    before_training: ClassVar[bool] = True
    splits: ClassVar[bool] = True

    allocation: str | Allocation = "global"
    temperature: float = 200.0

    def scores(
        self, model: nn.Module, weights: Mapping[str, nn.Parameter], data: Iterable[Batch] | None, loss: Loss
    ) -> Scores:
        return grasp(model, weights, () if data is None else data, loss, self.temperature)
