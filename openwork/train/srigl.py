"""SRigL: RigL with constant fan-in, which gives up units that hold too little that matters."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from openwork.connections import Connections, Rewiring
from openwork.grid import top_k
from openwork.growth import Scored, best_free, growth
from openwork.method import Method, method
from openwork.patterns import FanIn, Pattern, Unstructured, pattern
from openwork.positions import merged, where
from openwork.schedules import value_at
from openwork.sparsifier import Sparsifier
from openwork.train.rigl import RigL
from openwork.train.set import SET


@method(
    paper="Lasby et al., Dynamic Sparse Training with Structured Sparsity, ICLR 2024, arXiv 2305.02299",
    kind="train",
)
@dataclass(frozen=True, kw_only=True)
class SRigL(RigL):
    """Every unit at work has exactly ``F`` inputs; units that would hold too few useful ones are given up.

    At an update with drop fraction ``a``, in each parameter ``[out, inputs]`` with ``n`` connections, of ``B`` that the plan
    allows::

        d = floor(a n)
        salient   the n - d largest |w| (ties included, zeros not) and the d largest |dL/dw| of all places
        ablate    units with fewer than max(1, floor(ablate F0)) salient places, F0 = B / out; of the last layer none
        F         = floor(B / units left)
        keep      the n - d largest |w| in the units left, at most the F largest of each
        grow      the largest |dL/dw| in each unit until it has F, starting from zero

    Ablated units have no inputs, only their bias; they may come back at a later update. With constant fan-in a weight is two
    dense arrays ``[units, F]``, see :class:`openwork.layouts.condensed.Condensed`; ``pack_`` has a layout for it too.

    Args:
        ablate: 0.3 as in the paper for convolutions (it takes 0.95 for transformers); from 1 on a number of places; None never
            ablates.
        pattern: ``fan-in``, the only one.
        drop, every, until, replace: as RigL.
        grow: ``gradient``, or another rule with scores.

    Differences from the authors' code: it drops surplus inputs of a unit in arbitrary order, here the smallest go. Never are so
    many units ablated that the rest could not hold ``B`` connections.
    """

    whole_units = True

    ablate: float | None = 0.3
    pattern: str | Pattern = FanIn(idle=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if pattern(self.pattern) not in (FanIn(), FanIn(idle=True)):
            raise ValueError(f"srigl keeps a constant fan-in; for pattern {self.pattern!r} use RigL")
        if self.ablate is not None and self.ablate < 0:
            raise ValueError(
                f"ablate is a part of the fan-in, a number of places, or None; got {self.ablate}"
            )
        if not isinstance(growth(self.grow), Scored):
            raise ValueError(
                f"srigl asks how useful places are, and growth {self.grow!r} has no scores: use 'gradient'"
            )

    def limits(self) -> Iterable[tuple[Method, Method]]:
        yield from SET.limits(self)

    def attached(self, sparsifier: Sparsifier) -> None:
        # A stored layer that gave up units is planned as it is; what it may have is remembered.
        for row in sparsifier.plan.sparse:
            sparsifier.state[f"budget {row.name}"] = torch.tensor(row.kept)

    def choose(self, sparsifier: Sparsifier, step: int) -> Iterator[tuple[Connections, Rewiring]]:
        fraction = value_at(self.drop, step, self.run_length)
        last = sparsifier.plan.rows[-1].name
        for c in sparsifier.trained.values():
            rule = self.growth_in(c, sparsifier, step)
            assert isinstance(rule, Scored)
            budget = int(sparsifier.state[f"budget {c.name}"])
            ablate = None if c.name == last else self.ablate
            yield c, c.becoming(_chosen(c, rule, fraction, budget, ablate))


def _chosen(c: Connections, rule: Scored, fraction: float, budget: int, ablate: float | None) -> Tensor:
    """The sorted positions of one parameter after an update."""
    atoms, strength = c.atoms(), c.values.abs()
    units, inputs = c.grid.rows, c.grid.competitors
    unit = atoms // inputs
    dropped = int(fraction * c.kept + 1e-9)
    kept = min(c.kept - dropped, int((strength > 0).sum()))
    working = torch.ones(units, dtype=torch.bool, device=atoms.device)
    if ablate is not None:
        useful = _useful(c, rule, strength, kept, dropped)
        needed = ablate if ablate >= 1 else max(1, int(ablate * (budget // units)))
        least = max(1, -(-budget // inputs))
        working = (useful >= needed) | top_k(useful.double(), min(least, units))
    fan_in = min(budget // int(working.sum()), inputs)
    strongest = top_k(torch.where(working[unit], strength, -torch.inf), kept) & working[unit]
    taken = _at_most(strongest, strength, unit, fan_in)
    vacant = working * fan_in - torch.bincount(unit[taken], minlength=units)
    return c.grid.positions_of(merged(atoms[taken], best_free(rule.tiles(c), atoms[taken], vacant, c.grid)))


def _useful(c: Connections, rule: Scored, strength: Tensor, kept: int, dropped: int) -> Tensor:
    """How many salient places each unit has, int64 ``[units]``."""
    floor = strength.sort(descending=True).values[kept - 1] if kept else torch.inf
    strong = c.atoms()[where((strength >= floor) & (strength > 0))]
    anywhere = Unstructured().grid((c.grid.atoms,))
    steep = best_free(rule.tiles(c), strong[:0], torch.tensor([dropped]), anywhere)
    return torch.bincount(
        merged(strong, steep).unique_consecutive() // c.grid.competitors, minlength=c.grid.rows
    )


def _at_most(chosen: Tensor, strength: Tensor, unit: Tensor, most: int) -> Tensor:
    """The indices of the chosen, without the weakest of units that have more than ``most``; ties go to the first."""
    order = torch.where(chosen, strength, -1.0).argsort(descending=True, stable=True)
    order = order[unit[order].argsort(stable=True)]
    by_unit = unit[order]
    first = torch.searchsorted(by_unit, by_unit)
    rank = torch.arange(len(order), device=order.device) - first
    stays = torch.zeros_like(chosen)
    stays[order[rank < most]] = True
    return where(stays & chosen)
