"""Allocations by name."""

from __future__ import annotations

from openwork.allocation.contract import Allocation
from openwork.allocation.densities import ER, ERK, Balanced, Uniform
from openwork.allocation.depth import Pyramid, UniformPlus
from openwork.allocation.ranking import LAMP, Deviation, Global

_NAMED: dict[str, type[Allocation]] = {
    "uniform": Uniform,
    "uniform_plus": UniformPlus,
    "er": ER,
    "erk": ERK,
    "balanced": Balanced,
    "pyramid": Pyramid,
    "global": Global,
    "lamp": LAMP,
    "deviation": Deviation,
}
"""Those that need no options."""


def allocation(name: str | Allocation) -> Allocation:
    """An allocation by its name, with its defaults: uniform, uniform_plus, er, erk, balanced, pyramid, global, lamp,
    deviation."""
    if isinstance(name, Allocation):
        return name
    if name not in _NAMED:
        raise ValueError(f"unknown allocation {name!r}: choose one of {', '.join(_NAMED)}")
    return _NAMED[name]()
