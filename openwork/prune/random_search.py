"""Random search: of many random networks, the one that does best before any training. The naive baseline of topology search."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from openwork.allocation import Allocation
from openwork.method import method
from openwork.plan import Plan, plan
from openwork.pruner import Pruning
from openwork.scores import Batch, Loss, Scores, run, uniform, untouched


@method(
    paper="Farahani, Random Search as a Baseline for Sparse Neural Network Architecture Search, 2024, arXiv 2403.08265",
    kind="prune",
)
@dataclass(frozen=True, kw_only=True)
class RandomSearch(Pruning):
    """Draw ``trials`` random masks of the same counts and keep the one whose loss at the initial weights is smallest.

    In trial ``k`` every place gets a uniform score, and the pattern's legal mask of highest score is tried on ``data``::

        M_k ~ uniform over masks of the planned counts        M = the M_k of smallest L(M_k * w), the first among equals

    Nothing is trained in between, so it costs ``trials`` forward passes. Any claim that a topology was *found* has to beat what
    comes out of it, and one random mask (``trials=1``). ``pattern="groups 0"`` draws whole units instead of connections:
    exclude the output layer then. Use training data: what chooses must not judge. With ``rounds > 1`` every round searches anew
    inside what the one before has left; weights that are zero come last.

    Args:
        trials: how many masks to try; 100.
        allocation: ``erk``, as for a single random mask.
    """

    before_training: ClassVar[bool] = True

    allocation: str | Allocation = "erk"
    trials: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.trials < 1:
            raise ValueError(f"a search needs at least one trial; got trials={self.trials}")

    def scores(
        self, model: nn.Module, weights: Mapping[str, nn.Parameter], data: Iterable[Batch] | None, loss: Loss
    ) -> Scores:
        batches = list(() if data is None else data)
        if not batches:
            raise ValueError("random search compares masks by their loss: give data with at least one batch")
        best: tuple[float, Scores] | None = None
        for drawn, found in self.searched(model, batches, loss):
            if best is None or found < best[0]:
                best = found, drawn
        assert best is not None
        return best[1]

    def searched(
        self, model: nn.Module, batches: Sequence[Batch], loss: Loss
    ) -> Iterator[tuple[Scores, float]]:
        """Every trial: the scores that were drawn, and the mean loss over ``batches`` of the network they leave.

        The model is as it was after each.
        """
        weights = {row.name: row.weight for row in plan(model, self).sparse}
        present = sum(int(w.parameter.detach().count_nonzero()) for w in weights.values())
        for trial in range(self.trials):
            drawn: Scores = {}
            for name, w in weights.items():
                tensor = w.parameter.detach()
                places = uniform(tensor, self.generator(f"trial {trial} of {present}: {name}"))
                drawn[name] = places - (tensor == 0).double()
            layout = plan(model, self, {name: w.oriented(drawn[name]) for name, w in weights.items()})
            with _masked(layout, drawn):
                yield drawn, _loss(model, batches, loss)


@contextmanager
def _masked(layout: Plan, scores: Scores) -> Iterator[None]:
    """The model with only the connections of highest score; as it was afterwards."""
    before = {row.name: row.weight.parameter.detach().clone() for row in layout.sparse}
    try:
        with torch.no_grad():
            for row in layout.sparse:
                mask = row.pattern.choose(row.weight.oriented(scores[row.name]), row.kept)
                row.weight.oriented(row.weight.parameter).masked_fill_(~mask, 0)
        yield
    finally:
        with torch.no_grad():
            for row in layout.sparse:
                row.weight.parameter.copy_(before[row.name])


def _loss(model: nn.Module, batches: Sequence[Batch], loss: Loss) -> float:
    with untouched(model), torch.no_grad():
        return sum(float(loss(run(model, inputs), targets)) for inputs, targets in batches) / len(batches)
