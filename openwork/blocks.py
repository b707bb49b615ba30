"""Where the blocks of a model are.

A deep network is mostly a row of alike blocks, held in an ``nn.ModuleList`` or ``nn.Sequential``: the layers of a transformer,
the stages of a residual network. What works on one block at a time needs the memory of one block. A model without blocks is
one block. Which layers of a block read which tensor is told by :mod:`openwork.dataflow`.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class Stack:
    """Alike blocks in a row.

    Attributes:
        name: of the container that holds them; "" where the whole model is one block.
        blocks: name -> block, in order.
    """

    name: str
    blocks: dict[str, nn.Module]


def stacks(model: nn.Module, where: str = "auto") -> list[Stack]:
    """The rows of blocks of a model, in order of appearance.

    Args:
        model: any module.
        where: ``"auto"`` finds the outermost ``nn.ModuleList`` and ``nn.Sequential`` whose members are two or more modules of one
            class with weights inside; ``"whole"`` takes the whole model as one block; anything else is the name of the container
            (several separated by commas).

    Raises:
        ValueError: a named container does not exist, or has no members.
    """
    if where == "whole":
        return [Stack("", {"": model})]
    if where != "auto":
        return [_named(model, name.strip()) for name in where.split(",")]
    found: list[Stack] = []
    for name, module in model.named_modules():
        inside = any(not s.name or name.startswith(f"{s.name}.") for s in found)
        if not inside and _is_row(module):
            found.append(_members(name, module))
    return found or [Stack("", {"": model})]


def _is_row(module: nn.Module) -> bool:
    if not isinstance(module, (nn.ModuleList, nn.Sequential)):
        return False
    members = list(module.children())
    alike = len({type(member) for member in members}) == 1 and len(members) == len(module) > 1
    return alike and any(any(p.dim() > 1 for p in part.parameters()) for part in members[0].children())


def _members(name: str, module: nn.Module) -> Stack:
    return Stack(name, {f"{name}.{key}" if name else key: block for key, block in module.named_children()})


def _named(model: nn.Module, name: str) -> Stack:
    try:
        module = model.get_submodule(name)
    except AttributeError:
        near = ", ".join(s.name or "'whole'" for s in stacks(model))
        raise ValueError(f"blocks={name!r}: the model has no such module; found by itself: {near}") from None
    stack = _members(name, module)
    if not stack.blocks:
        raise ValueError(f"blocks={name!r} holds no modules: name the ModuleList or Sequential itself")
    return stack
