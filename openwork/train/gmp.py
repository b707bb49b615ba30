"""GMP: prune gradually while training, fast first and slowly at the end."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from openwork.allocation import Allocation
from openwork.connections import Connections
from openwork.initialization import Init
from openwork.method import check_fraction, method
from openwork.plan import Row
from openwork.schedules import Periodic, Polynomial
from openwork.selection import strongest
from openwork.sparsifier import Sparsifier, Training


@method(paper="Zhu & Gupta, To Prune, or Not to Prune, 2017, arXiv 1710.01878", kind="train")
@dataclass(frozen=True, kw_only=True)
class GMP(Training):
    """Gradual magnitude pruning: the dense-to-sparse reference everyone is compared with.

    Training starts dense. At steps ``t0, t0 + every, ..., t1`` the smallest weights are pruned down to the sparsity::

        s(t) = s_final + (s_initial - s_final) * (1 - (t - t0) / (t1 - t0)) ** power

    Pruned weights stay zero, so masks are nested. After ``t1`` the rest of the run trains what is left.

    Args:
        initial: sparsity at ``t0``, or the final one of a parameter where that is lower; 0 by default.
        begin, until: ``t0`` and ``t1`` as parts of the run; 0 and 0.75 (the sources prune until 75 to 80 % of training).
        every: steps between prunings; 100 (the sources use 100 to 1000).
        power: 3, the cubic of the paper.
        allocation: ``uniform`` (default), or ``global`` to rank the weights of all layers together; a floor keeps layers from
            being emptied: ``Global(floor=0.005)``.
    """

    shrinks: ClassVar[bool] = True

    initial: float = 0.0
    begin: float = 0.0
    until: float = 0.75
    every: int = 100
    power: float = 3.0
    allocation: str | Allocation = "uniform"
    init: Init = "keep"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fraction("initial", self.initial)
        check_fraction("begin", self.begin)
        check_fraction("until", self.until)

    def topology(self, row: Row, generator: torch.Generator) -> Tensor | None:
        return None

    def due(self, step: int) -> bool:
        first, last = self._window
        return Periodic(self.every, first, last, closing=True).due(step)

    def update(self, sparsifier: Sparsifier, step: int) -> None:
        for connections, survivors in self.pruned(sparsifier, step):
            connections.retain(survivors)

    def pruned(self, sparsifier: Sparsifier, step: int) -> list[tuple[Connections, Tensor]]:
        """What is left of each parameter at ``step``: boolean over its active places. Changes nothing."""
        first, last = self._window
        progress = min((step - first) / (last - first), 1.0) if last > first else 1.0
        return strongest(
            sparsifier.plan, sparsifier.connections, lambda size, final: kept_at(self, progress, size, final)
        )

    @property
    def _window(self) -> tuple[int, int]:
        steps = self.run_length
        return max(1, math.floor(self.begin * steps)), max(1, math.floor(self.until * steps))


def kept_at(gmp: GMP, progress: float, size: int, final: int) -> int:
    """How many of ``size`` connections are kept on the way to ``final``."""
    stop = 1.0 - final / size
    curve = Polynomial(start=min(gmp.initial, stop), stop=stop, power=gmp.power)
    return round(size * (1.0 - curve.at(progress)))
