"""A parameter seen through a module, and seen plainly again: :mod:`torch.nn.utils.parametrize`, which forgets the order."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn
from torch.nn.utils import parametrize


def parametrized(module: nn.Module, name: str, through: nn.Module) -> Callable[[], None]:
    """Let ``module`` see its parameter ``name`` through another module.

    Returns:
        What undoes it and puts the parameter back between its siblings. Where a module has several, undo the last one first.
    """
    order = list(module._parameters)
    parametrize.register_parametrization(module, name, through, unsafe=True)

    def undo() -> None:
        parametrize.remove_parametrizations(module, name, leave_parametrized=False)
        held = dict(module._parameters)
        module._parameters.clear()
        module._parameters.update({key: held.pop(key) for key in order if key in held} | held)

    return undo
