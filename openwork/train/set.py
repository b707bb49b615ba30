"""SET: drop the weakest connections, grow random ones, again and again."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from openwork.connections import Connections, Rewiring
from openwork.growth import Growth, growth
from openwork.kernels.ranking import farther_from_zero
from openwork.method import Method, check_fraction, method
from openwork.schedules import Periodic, Scalar, Schedule, value_at
from openwork.sparsifier import Sparsifier
from openwork.train.static_random import StaticRandom


@method(
    paper="Mocanu et al., Scalable Training of Artificial Neural Networks with Adaptive Sparse Connectivity, "
    "Nature Communications 2018, arXiv 1707.04780",
    kind="train",
)
@dataclass(frozen=True, kw_only=True)
class SET(StaticRandom):
    """Sparse evolutionary training: every ``every`` steps the weakest connections make room for random ones.

    In each parameter with ``n`` connections, at an update with drop fraction ``a``::

        drop  the floor(a P) smallest of the P non-negative weights, and
              the floor(a Q) of the Q negative weights that are closest to zero        (drop_by="signed")
              or the floor(a n) smallest |w|                                             (drop_by="magnitude")
        grow  as many at random among all free places, starting from zero

    so the number of connections never changes. Survivors keep their optimizer state bit for bit, new ones start without.

    Args:
        drop: fraction dropped at an update, a number or a schedule; 0.3 in the paper (zeta).
        every: steps between updates; the paper updates once an epoch.
        until: part of the run after which the topology is frozen; 1 (default) updates to the end, but never at the last step.
        drop_by: ``signed`` as in the paper, or ``magnitude`` as in later work. Where places are larger than single
            connections (blocks, groups) or compete in rows, magnitudes of whole places are compared.
        grow: where new connections go.
        grown_std: standard deviation of new weights; 0 (default), or 0.1 as in the authors' truly sparse code.
        replace: whether an update takes the place of the optimizer's step of that iteration.
    """

    drop: Scalar = 0.3
    every: int = 100
    until: float = 1.0
    drop_by: Literal["signed", "magnitude"] = "signed"
    grow: str | Growth = "random"
    grown_std: float = 0.0
    replace: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fraction("until", self.until)
        for value in (self.drop.start, self.drop.stop) if isinstance(self.drop, Schedule) else (self.drop,):
            check_fraction("drop", value)
        growth(self.grow)

    def limits(self) -> Iterable[tuple[Method, Method]]:
        yield dataclasses.replace(self, drop=0.0, replace=False), self.reduced_to(StaticRandom)

    @property
    def growth_needs(self) -> frozenset[str]:
        return growth(self.grow).needs

    @property
    def replaces_step(self) -> bool:
        return self.replace

    def due(self, step: int) -> bool:
        last = min(math.floor(self.until * self.run_length), self.run_length - 1)
        return Periodic(self.every, self.every, last).due(step)

    def update(self, sparsifier: Sparsifier, step: int) -> None:
        # All parameters choose before any changes: a gradient that is not finite leaves the whole topology as it was.
        for connections, rewiring in list(self.choose(sparsifier, step)):
            done = connections.adopt(rewiring)
            if self.grown_std and (fresh := done.fresh).numel():
                drawn = torch.randn(fresh.numel(), generator=sparsifier.generator, dtype=torch.float64)
                connections.write(fresh, (self.grown_std * drawn).to(connections.device))

    def choose(self, sparsifier: Sparsifier, step: int) -> Iterator[tuple[Connections, Rewiring]]:
        """The connections that each parameter is to have from now on. Changes nothing."""
        fraction = value_at(self.drop, step, self.run_length)
        for c in sparsifier.trained.values():
            rule = self.growth_in(c, sparsifier, step)
            yield c, c.rewired(self.survivors(c, fraction), rule, sparsifier.generator)

    def growth_in(self, connections: Connections, sparsifier: Sparsifier, step: int) -> Growth:
        """Where new connections of one parameter go at this update."""
        return growth(self.grow)

    def survivors(self, connections: Connections, fraction: float) -> Tensor:
        """Boolean over the active places: those that stay."""
        if self.drop_by == "magnitude" or not connections.grid.plain or connections.grid.rows > 1:
            active = connections.kept // connections.grid.atom
            return connections.strongest(active - _floor(fraction * active))
        values = connections.values
        negative = int((values < 0).count_nonzero())
        positive = values.numel() - negative
        return farther_from_zero(values, negative, _floor(fraction * positive), _floor(fraction * negative))


def _floor(count: float) -> int:
    """Floor that forgives the rounding of a product such as 0.3 * 10."""
    return math.floor(count + 1e-9)
