"""A model is compressed whole or not at all: what is needed to put it back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from openwork.matrices import Matrix


class Undo:
    """Remembers how a model was."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._values: list[tuple[Tensor, Tensor]] = []
        self._replaced: list[tuple[nn.Module, str, nn.Module]] = []
        self._added: list[nn.Module] = []

    def remember(self, block: nn.Module) -> None:
        """Copy what a block holds, before anything in it changes."""
        held = [*block.parameters(), *block.buffers()]
        self._values += [(tensor.detach(), tensor.detach().clone()) for tensor in held]

    def replace(self, name: str, module: nn.Module) -> None:
        """Put ``module`` in the place of the model's submodule ``name``."""
        parent, _, child = name.rpartition(".")
        owner = self._model.get_submodule(parent)
        self._replaced.append((owner, child, owner.get_submodule(child)))
        owner.register_module(child, module)

    def add_bias(self, m: Matrix, bias: Tensor) -> None:
        """Give a bias to a layer that has none.

        Raises:
            ValueError: it is of a kind that has no place for one.
        """
        module, parameter = m.weight.module, m.weight.parameter
        if not isinstance(module, (nn.Linear, nn.modules.conv._ConvNd)) or m.of > 1:
            raise ValueError(
                f"{m.name} belongs to a {type(module).__name__}, which has no place for a bias: exclude it"
            )
        self._added.append(module)
        module.register_parameter("bias", nn.Parameter(bias.to(parameter.dtype), parameter.requires_grad))

    def undo(self) -> None:
        """Put everything back."""
        for owner, child, module in reversed(self._replaced):
            owner.register_module(child, module)
        for module in self._added:
            module.register_parameter("bias", None)
        for tensor, value in reversed(self._values):
            tensor.copy_(value)


@contextmanager
def all_or_nothing(model: nn.Module) -> Iterator[Undo]:
    """Inside this, no gradients are recorded; after an error in it, the model is as it was."""
    undo = Undo(model)
    with torch.no_grad():
        try:
            yield undo
        except BaseException:
            undo.undo()
            raise


_SETTINGS = {"use_cache": False, "_experts_implementation_internal": "eager"}
"""What models of Transformers are told meanwhile: no cache, and experts one after another, where each can be watched."""


@contextmanager
def at_rest(model: nn.Module) -> Iterator[None]:
    """Inside this, dropout and caches are off. What takes the place of a module meanwhile comes out in the mode of that one."""
    modules = dict(model.named_modules())
    modes = {name: module.training for name, module in modules.items()}
    configs: dict[int, Any] = {id(m.config): m.config for m in model.modules() if hasattr(m, "config")}
    held = [(c, key, getattr(c, key)) for c in configs.values() for key in _SETTINGS if hasattr(c, key)]
    try:
        model.eval()
        for config, key, _ in held:
            setattr(config, key, _SETTINGS[key])
        yield
    finally:
        known = {id(module) for module in modules.values()}
        for name, module in model.named_modules():
            if id(module) not in known and name in modes:
                module.train(modes[name])
        for name, module in modules.items():
            module.training = modes[name]
        for config, key, value in held:
            setattr(config, key, value)
