"""One parameter, one sparsifier: two would mask each other's connections, and neither would keep as many as it says."""

from __future__ import annotations

from collections.abc import Iterable
from weakref import WeakSet

from openwork.connections import Connections
from openwork.plan import Plan

_AT_WORK: WeakSet[Connections] = WeakSet()


def occupy(connections: Iterable[Connections]) -> None:
    """Remember that these are at work on their parameters."""
    _AT_WORK.update(connections)


def vacate(connections: Iterable[Connections]) -> None:
    """Forget them."""
    _AT_WORK.difference_update(connections)


def require_vacant(layout: Plan) -> None:
    """Raise ValueError if a parameter that a plan makes sparse has a sparsifier already."""
    taken = {id(c.weight.parameter) for c in _AT_WORK}
    if both := [row.name for row in layout.sparse if id(row.weight.parameter) in taken]:
        raise ValueError(
            f"{', '.join(both)}: a sparsifier is at work there already, and two would undo each other's choices. Call detach() "
            "of the first, or leave these parameters to it with exclude="
        )
