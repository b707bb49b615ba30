"""Places for values in nested arguments: how a node of a traced model is called later, with the values of then."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

Values = list[Any]
"""What was computed so far; each step knows the places of its arguments and of its result."""


@dataclass(frozen=True)
class Place:
    """Stands for ``values[at]`` among the arguments of a :class:`Plain` step."""

    at: int


@dataclass(frozen=True)
class Method:
    """Calls a method of its first argument."""

    name: str

    def __call__(self, x: Any, *arguments: Any, **keywords: Any) -> Any:
        """Call it."""
        return getattr(x, self.name)(*arguments, **keywords)


@dataclass(frozen=True, eq=False)
class Attribute:
    """Looks up an attribute of the model."""

    model: nn.Module
    name: str

    def __call__(self) -> Any:
        """Look it up."""
        found: Any = self.model
        for part in self.name.split("."):
            found = getattr(found, part)
        return found


def places(arguments: Any) -> list[Place]:
    """All places in nested arguments."""
    if isinstance(arguments, Place):
        return [arguments]
    if isinstance(arguments, slice):
        arguments = (arguments.start, arguments.stop, arguments.step)
    parts = arguments.values() if isinstance(arguments, dict) else arguments
    return [p for part in parts for p in places(part)] if isinstance(arguments, (tuple, list, dict)) else []


def filled(arguments: Any, values: Values) -> Any:
    """Nested arguments with values at their places."""
    if isinstance(arguments, Place):
        return values[arguments.at]
    if isinstance(arguments, slice):
        return slice(*(filled(part, values) for part in (arguments.start, arguments.stop, arguments.step)))
    if isinstance(arguments, dict):
        return {key: filled(part, values) for key, part in arguments.items()}
    if isinstance(arguments, list):
        return [filled(part, values) for part in arguments]
    return tuple(filled(part, values) for part in arguments) if isinstance(arguments, tuple) else arguments
