"""DNW: the network computes with the strongest weights, the gradient trains them all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from openwork.allocation import Allocation
from openwork.initialization import Init
from openwork.method import method
from openwork.plan import Row
from openwork.positions import where
from openwork.schedules import Periodic
from openwork.sparsifier import Sparsifier, Training


@method(paper="Wortsman et al., Discovering Neural Wirings, NeurIPS 2019, arXiv 1906.00586", kind="train")
@dataclass(frozen=True, kw_only=True)
class DNW(Training):
    """Discovering neural wirings: a plain straight-through estimator over dense weights ``theta``.

    In each parameter, with ``M`` the legal mask of the ``kept`` largest ``|theta|``, chosen anew after every step::

        forward   w = M * theta
        backward  theta <- theta - lr * dL/dw        everywhere, pruned or not

    A pruned weight that the loss would like to have grows until it is among the largest. The network is sparse at all times, the
    training is not: dense weights, gradients and optimizer state are kept, and the model shows ``w``
    (:mod:`openwork.connections.latent`).

    Args:
        every: steps between two choices of the mask; 1 as in the paper.
        allocation: ``uniform``; counts are fixed when attached.

    Differences from the authors' code: whatever optimizer is attached moves ``theta``, weight decay included.
    """

    latent: ClassVar[bool] = True

    every: int = 1
    allocation: str | Allocation = "uniform"
    init: Init = "keep"

    def __post_init__(self) -> None:
        super().__post_init__()
        Periodic(self.every, 1, 1)

    def topology(self, row: Row, generator: torch.Generator) -> Tensor | None:
        return where(row.pattern.choose(row.weight.oriented(row.weight.parameter.detach()).abs(), row.kept))

    def due(self, step: int) -> bool:
        return step % self.every == 0

    def update(self, sparsifier: Sparsifier, step: int) -> None:
        chosen = [(c, c.strongest_latent(row.kept)) for row, c in sparsifier.latents()]
        for c, positions in chosen:
            c.replace(positions)
