"""Growth by its name."""

from __future__ import annotations

from openwork.growth.contract import Growth
from openwork.growth.gradient import Gradient, Momentum
from openwork.growth.link_prediction import CH3L3
from openwork.growth.random import Random

_NAMED: dict[str, type[Growth]] = {
    "random": Random,
    "gradient": Gradient,
    "momentum": Momentum,
    "ch3_l3": CH3L3,
}


def growth(name: str | Growth) -> Growth:
    """A growth rule by its name: random, gradient, momentum, ch3_l3."""
    if isinstance(name, Growth):
        return name
    if name not in _NAMED:
        raise ValueError(f"unknown growth {name!r}: choose one of {', '.join(_NAMED)}")
    return _NAMED[name]()
