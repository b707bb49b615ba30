"""RigL: SET that grows where the gradient is largest."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from openwork.growth import Growth
from openwork.method import Method, method
from openwork.schedules import Cosine, Scalar
from openwork.train.set import SET


@method(
    paper="Evci et al., Rigging the Lottery: Making All Tickets Winners, ICML 2020, arXiv 1911.11134",
    kind="train",
)
@dataclass(frozen=True, kw_only=True)
class RigL(SET):
    """Drop the connections of smallest magnitude, grow those whose gradient is largest.

    At an update at step ``t`` of a run that updates until ``T``, in each parameter with ``n`` connections::

        a  = drop / 2 * (1 + cos(pi t / T))
        drop  the floor(a n) smallest |w|
        grow  the floor(a n) largest |dL/dw| outside the survivors, starting from zero

    The gradient is the dense one of the current batch, needed only at updates. A connection just dropped may be grown again at
    once and then keeps its weight and state. With ``grow="random"`` this is SET by magnitude.

    Args:
        drop: 0.3 falling to zero along a cosine over 75 % of the run, as in the paper.
        every: 100 steps, as in the paper.
        until: 0.75 of the run, as in the paper.
        replace: an update takes the place of the optimizer's step, as in the reference implementation. Most ports step
            first and update afterwards: ``replace=False``.
    """

    drop: Scalar = Cosine(start=0.3, stop=0.0, until=0.75)
    every: int = 100
    until: float = 0.75
    drop_by: Literal["signed", "magnitude"] = "magnitude"
    grow: str | Growth = "gradient"
    replace: bool = True

    def limits(self) -> Iterable[tuple[Method, Method]]:
        by_magnitude = dataclasses.replace(self, grow="random")
        yield from super().limits()
        yield by_magnitude, by_magnitude.reduced_to(SET)
