"""DST-EE: RigL with a bonus for connections that were hardly tried."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from torch import Tensor

from openwork.connections import Connections
from openwork.exploration import times_tried
from openwork.growth import Growth, Scored, Site, Tile, growth
from openwork.method import Method, method
from openwork.schedules import Cosine, Scalar
from openwork.sparsifier import Sparsifier
from openwork.train.itop import ITOP
from openwork.train.rigl import RigL


@dataclass(frozen=True, eq=False)
class Curious(Scored):
    """The score of another rule plus ``bonus / (times tried + eps)``.

    Args:
        base: the rule that scores by what is known.
        record: what was tried, see :mod:`openwork.exploration`.
        bonus: what a place that was never tried gets, times ``eps``.
        eps: how soon the bonus wears off.
        relative: whether ``bonus`` is in units of the mean score of the parameter.
    """

    base: Scored
    record: Tensor
    bonus: float
    eps: float
    relative: bool

    def tiles(self, site: Site) -> Iterator[Tile]:
        bonus = self.bonus
        if self.relative:
            bonus *= (
                sum(float(scores.double().sum()) for _, scores in self.base.tiles(site)) / site.grid.atoms
            )
        for first, scores in self.base.tiles(site):
            # In double precision a large bonus leaves the order of equally tried places to the base rule.
            tried = times_tried(self.record, first, scores.numel()).to(scores.device)
            yield first, scores.double() + bonus / (tried + self.eps)


@method(
    paper="Huang et al., Dynamic Sparse Training via Balancing the Exploration-Exploitation Trade-off, DAC 2023, "
    "arXiv 2211.16667",
    kind="train",
)
@dataclass(frozen=True, kw_only=True)
class DSTEE(ITOP):
    """Balance exploitation and exploration: grow where the gradient is large or where little was tried.

    Updates are those of RigL, but at step ``t`` the free places are ranked by an upper confidence bound::

        |dL/dw| + c ln(t) / (C + eps),        C = number of topologies the place was active in, the initial one included

    A pure gradient rule is greedy and goes back to the same places; the bonus leads to those never tried. With ``c=0`` this is
    RigL. ``sparsifier.summary()`` shows which part was explored, as for ITOP.

    Args:
        c: weight of the bonus; 1e-3 (the paper tunes it for every task, in about 1e-4 to 1e-2).
        eps: 1.
        relative: measure ``c`` in units of the parameter's mean ``|dL/dw|`` of the moment. Gradients shrink in training and
            ln(t) does not, so a fixed ``c`` drifts to pure exploration; a relative one does not. False as in the paper.
        drop, every, until, replace: as RigL.
        grow: ``gradient``, or another rule with scores.

    Differences from the paper: ``C`` counts a connection when it enters (the initial topology too) instead of at the update that
    ends its first interval, so that a connection just grown counts as explored. The authors' code could not be found.
    """

    c: float = 1e-3
    eps: float = 1.0
    relative: bool = False
    drop: Scalar = Cosine(start=0.3, stop=0.0, until=0.75)
    every: int = 100
    until: float = 0.75
    replace: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.c < 0 or self.eps <= 0:
            raise ValueError(f"c is at least 0 and eps above 0; got c={self.c}, eps={self.eps}")
        if not isinstance(growth(self.grow), Scored):
            raise ValueError(
                f"a bonus is added to scores, and growth {self.grow!r} has none: use grow='gradient'"
            )

    def limits(self) -> Iterable[tuple[Method, Method]]:
        yield dataclasses.replace(self, c=0.0), self.reduced_to(RigL)

    def growth_in(self, connections: Connections, sparsifier: Sparsifier, step: int) -> Growth:
        rule = growth(self.grow)
        assert isinstance(rule, Scored)
        record = sparsifier.state[f"explored {connections.name}"].to(connections.device)
        return Curious(rule, record, self.c * math.log(step), self.eps, self.relative)
