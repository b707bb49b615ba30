"""ITOP: RigL that waits longer, moves more, and measures how much it has tried."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from openwork.exploration import explored, rate, unexplored
from openwork.method import Method, method
from openwork.schedules import Cosine, Scalar
from openwork.sparsifier import Sparsifier
from openwork.train.rigl import RigL


@method(
    paper="Liu et al., Do We Actually Need Dense Over-Parameterization? In-Time Over-Parameterization in Sparse Training, "
    "ICML 2021, arXiv 2102.02887",
    kind="train",
)
@dataclass(frozen=True, kw_only=True)
class ITOP(RigL):
    """In-time over-parameterization: try many connections, each for long enough to show what it is worth.

    The updates are those of RigL (or, with ``grow="random"``, of SET by magnitude); the schedule is another, and the part of
    all connections that was ever tried is measured::

        R_s = sum(M_0 or M_1 or ... or M_t) / numel        from the density at the start up to 1

    Accuracy rises with ``R_s`` as long as the intervals are long enough: connections that are judged before they could grow are
    not explored, only visited. It stands in ``sparsifier.summary()``, and in numbers in ``method.measures(sparsifier)``.

    Args:
        drop: 0.5 falling to 0.005 along a cosine over the whole run, as in the paper.
        every: 1500 steps; the paper takes 1500 with random growth and 4000 by gradient, at batches of 128.
        until: 1, updates to the end.
        replace: False, step first and update afterwards, as the authors' code.
        min_age: in how many topologies a connection must have been to count as tried; 1 is the ``R_s`` of the paper.

    Differences from the authors' code: none in training. A block or a group counts as one.
    """

    drop: Scalar = Cosine(start=0.5, stop=0.005)
    every: int = 1500
    until: float = 1.0
    replace: bool = False
    min_age: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.min_age < 1:
            raise ValueError(f"min_age counts topologies, at least 1; got {self.min_age}")

    def limits(self) -> Iterable[tuple[Method, Method]]:
        yield from super().limits()
        yield self, self.reduced_to(RigL)

    def attached(self, sparsifier: Sparsifier) -> None:
        for c in sparsifier.connections.values():
            sparsifier.state[f"explored {c.name}"] = explored(unexplored(c.device), c.atoms())

    def update(self, sparsifier: Sparsifier, step: int) -> None:
        super().update(sparsifier, step)
        for c in sparsifier.connections.values():
            key = f"explored {c.name}"
            sparsifier.state[key] = explored(sparsifier.state[key].to(c.device), c.atoms())

    def measures(self, sparsifier: Sparsifier) -> Mapping[str, float]:
        """The exploration rate ``R_s`` of the whole network and of every parameter."""
        parts = {
            c.name: rate(sparsifier.state[f"explored {c.name}"], c.grid.atoms, self.min_age)
            for c in sparsifier.connections.values()
        }
        sizes = {c.name: c.numel for c in sparsifier.connections.values()}
        whole = sum(parts[name] * sizes[name] for name in parts) / sum(sizes.values())
        return {"explored": whole, **{f"explored of {name}": part for name, part in parts.items()}}
