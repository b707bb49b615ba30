"""ISS-P: shrink the smallest weights a little at every step, and let them fight their way back, until they are cut."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from openwork.allocation import Allocation
from openwork.initialization import Init
from openwork.method import Method, check_fraction, method
from openwork.plan import Row
from openwork.positions import located
from openwork.schedules import Scalar, value_at
from openwork.selection import strongest
from openwork.sparsifier import Sparsifier, Training
from openwork.train.gmp import GMP


@method(
    paper="Wang et al., Iterative Soft Shrinkage Learning for Efficient Image Super-Resolution, ICCV 2023, arXiv 2303.09650",
    kind="train",
)
@dataclass(frozen=True, kw_only=True)
class ISSP(Training):
    """Iterative soft shrinkage: multiply the smallest weights by a factor just under one instead of pruning them.

    After every step ``t`` of the optimizer, in each parameter, with ``U`` the weights that would be pruned now (all but the
    ``kept`` largest ``|w|``, chosen anew each time)::

        t < T    w <- shrink * w    on U, nothing else is touched: ranks can still change, gradients stay dense
        t = T    w <- 0             on U, for good; the rest of the run fine-tunes what is left

    Without a gradient a weight that stays in ``U`` for ``k`` steps is multiplied by ``shrink ** k``: weight decay of strength
    ``(1 - shrink) / learning rate``, on ``U`` alone. ``shrink=1`` is one-shot magnitude pruning at ``T`` (:class:`GMP` with one
    pruning), ``shrink=0`` iterative hard thresholding: the model is sparse after every step, and every weight may come back.

    Args:
        shrink: the factor; 0.95 as in the paper's recipes (0.99 in the code). It follows the optimizer's step, so its effect is
            relative to the learning rate: smaller steps want a factor closer to one.
        until: ``T`` as a part of the run; 0.5 (default).
        allocation: ``uniform`` as in the paper. Ranking all layers together kills small layers at the end of a network.

    Differences from the authors' code: the ranking is exact, theirs estimates a threshold from a sample of the weights. The
    sparsity is the final one from the first step, where theirs raises it by a counter.
    """

    shrinks: ClassVar[bool] = True

    shrink: Scalar = 0.95
    until: float = 0.5
    allocation: str | Allocation = "uniform"
    init: Init = "keep"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fraction("until", self.until)
        for value in (
            (self.shrink,) if isinstance(self.shrink, (int, float)) else (self.shrink.start, self.shrink.stop)
        ):
            check_fraction("shrink", value)

    def limits(self) -> Iterable[tuple[Method, Method]]:
        if self.steps is not None:
            shared = {f.name: getattr(self, f.name) for f in dataclasses.fields(Training)}
            moment = (self._last + 0.5) / self.steps
            yield dataclasses.replace(self, shrink=1.0), GMP(**shared, begin=moment, until=moment)

    def topology(self, row: Row, generator: torch.Generator) -> Tensor | None:
        return None

    def due(self, step: int) -> bool:
        return step <= self._last

    def update(self, sparsifier: Sparsifier, step: int) -> None:
        factor = value_at(self.shrink, step, self.run_length)
        for c, stays in strongest(sparsifier.plan, sparsifier.connections):
            if step == self._last:
                c.retain(stays)
                continue
            weak = c.grid.positions_of(c.atoms()[~stays])
            index, _ = located(c.positions, weak)
            c.write(weak, factor * c.values[index])

    @property
    def _last(self) -> int:
        return max(1, math.floor(self.until * self.run_length + 1e-9))
