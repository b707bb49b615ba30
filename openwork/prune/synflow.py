"""SynFlow: before training and without data, never empty a layer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from openwork.allocation import Allocation
from openwork.method import method
from openwork.pruner import Pruning
from openwork.scores import Batch, Loss, Scores, synflow


@method(
    paper="Tanaka et al., Pruning Neural Networks without Any Data by Iteratively Conserving Synaptic Flow, "
    "NeurIPS 2020, arXiv 2006.05467",
    kind="prune",
)
@dataclass(frozen=True, kw_only=True)
class SynFlow(Pruning):
    """Keep the connections that carry most synaptic flow ``|w * dR/dw|``, cutting a little in each of many rounds.

    ``R`` is the sum of the outputs for an input of ones through the network of absolute values. In a network of linear layers and
    ReLUs without biases the scores of every layer sum to ``R``, so a layer that is cut scores higher and is not emptied.

    Args:
        rounds: 100, as in the paper, with density ``d ** (r / 100)`` after round ``r``.

    ``data`` needs one batch only to learn the shape of an input; its values are not used.
    """

    before_training: ClassVar[bool] = True
    splits: ClassVar[bool] = True

    allocation: str | Allocation = "global"
    rounds: int = 100

    def scores(
        self, model: nn.Module, weights: Mapping[str, nn.Parameter], data: Iterable[Batch] | None, loss: Loss
    ) -> Scores:
        batch = next(iter(() if data is None else data), None)
        if batch is None:
            raise ValueError(
                "SynFlow needs to know what an input looks like: give data=[(inputs, targets)] with one batch"
            )
        return synflow(model, weights, batch[0])
