"""GraNet: prune gradually, and at every pruning let some of what is left change places."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from openwork.allocation import ERK, Allocation
from openwork.grid import top_k
from openwork.growth import Growth, growth
from openwork.initialization import Init
from openwork.method import Method, check_fraction, method
from openwork.plan import Plan, Row, wanted_total
from openwork.schedules import Cosine, Periodic, Scalar, Schedule, value_at
from openwork.sparsifier import Sparsifier, Training
from openwork.train.gmp import GMP, kept_at
from openwork.train.rigl import RigL


@method(
    paper="Liu et al., Sparse Training via Boosting Pruning Plasticity with Neuroregeneration, NeurIPS 2021, arXiv 2106.10404",
    kind="train",
)
@dataclass(frozen=True, kw_only=True)
class GraNet(GMP):
    """Gradual pruning with regrowth at no cost: GMP and RigL in one update.

    Training starts from a random topology of sparsity ``initial``, with the densities of ERK. Every ``every`` steps::

        prune  the smallest |w| down to the sparsity s(t) of gradual pruning              (GMP)
        drop   the floor(a n) smallest |w| of the n connections left in each parameter    (RigL)
        grow   the floor(a n) largest |dL/dw| outside the survivors, starting from zero

    After ``until`` the sparsity is final and connections go on changing places until the end. With ``drop=0`` this is GMP; with
    ``initial`` equal to the final sparsity it is RigL on the schedule of ITOP.

    Args:
        initial: sparsity at the start; 0.5 as in the paper's sparse-to-sparse runs (0: dense, as in its others).
        begin, until: when pruning begins and ends, as parts of the run; 0 and 110 of 160 epochs, as in the paper.
        every: 100 steps; the paper takes 1000.
        drop: 0.5 falling to 0.005 along a cosine over the whole run, as in the authors' code.
        grow: where new connections go.
        allocation: ``global``, the weights of all layers are ranked together.

    Differences from the authors' code: counts are exact, there is no threshold that ties at zero could cross, and a connection
    that was pruned and regrown in one update keeps its weight.
    """

    initial: float = 0.5
    until: float = 110 / 160
    drop: Scalar = Cosine(start=0.5, stop=0.005)
    grow: str | Growth = "gradient"
    allocation: str | Allocation = "global"
    init: Init = "rescale"

    def __post_init__(self) -> None:
        super().__post_init__()
        for value in (self.drop.start, self.drop.stop) if isinstance(self.drop, Schedule) else (self.drop,):
            check_fraction("drop", value)
        growth(self.grow)

    def limits(self) -> Iterable[tuple[Method, Method]]:
        dense = dataclasses.replace(self, initial=0.0, drop=0.0)
        yield dense, dense.reduced_to(GMP)
        if self.steps is not None:
            flat: dict[str, Any] = {"kept": None, "overrides": {}}
            level = dataclasses.replace(
                self, initial=self.sparsity, begin=(self.every + 0.5) / self.steps, **flat
            )
            shared = {f.name: getattr(level, f.name) for f in dataclasses.fields(Training)}
            schedule = {"drop": self.drop, "every": self.every, "until": 1.0, "replace": False}
            yield level, RigL(**{**shared, **schedule, "allocation": "erk", "grow": self.grow})

    @property
    def growth_needs(self) -> frozenset[str]:
        return growth(self.grow).needs

    def start(self, layout: Plan) -> Plan:
        shared = [row for row in layout.sparse if not row.fixed]
        size = sum(row.numel for row in shared)
        total = kept_at(self, 0.0, size, wanted_total(self, size)) if size else 0
        counts = iter(ERK().counts([row.shape for row in shared], total))

        def first(row: Row) -> Row:
            kept = kept_at(self, 0.0, row.numel, row.kept) if row.fixed else next(counts)
            return dataclasses.replace(row, kept=row.pattern.legal_kept(row.shape, kept))

        return dataclasses.replace(
            layout, rows=tuple(first(row) if row.sparse else row for row in layout.rows)
        )

    def topology(self, row: Row, generator: torch.Generator) -> Tensor | None:
        return Training.topology(self, row, generator)

    def due(self, step: int) -> bool:
        return super().due(step) or self._regrows(step)

    def _regrows(self, step: int) -> bool:
        return Periodic(self.every, self._window[0], self.run_length - 1).due(step)

    def update(self, sparsifier: Sparsifier, step: int) -> None:
        rule = growth(self.grow)
        # Pruning closes at a step of its own where the window is no multiple of `every`.
        fraction = value_at(self.drop, step, self.run_length) if self._regrows(step) else 0.0
        chosen = []
        for c, left in self.pruned(sparsifier, step):
            count = int(left.sum())
            strength = torch.where(left, c.pool(c.values.abs()), -torch.inf)
            survivors = top_k(strength, count - math.floor(fraction * count + 1e-9))
            vacant = c.counted(left & ~survivors)
            chosen.append((c, c.rewired(survivors, rule, sparsifier.generator, vacant)))
        for c, rewiring in chosen:
            c.adopt(rewiring)
