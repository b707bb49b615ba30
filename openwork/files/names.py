"""A model seen under its plain names: ``fc.weight``, whatever stores that weight."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrize

from openwork.durable import FileError
from openwork.files.header import DTYPES, weight_of
from openwork.layouts.fitting import STORED
from openwork.layouts.layer import SparseLayer

Plain = Mapping[str, Tensor | SparseLayer[Any]]
"""Tensors by plain name, in the order of the model's ``state_dict``; a layer stands for its own weight."""


def plain_state(model: nn.Module) -> Plain:
    """The state of ``model`` under plain names.

    - A :class:`SparseLayer` appears as one ``weight``, not as values and indices.
    - A weight that openwork has parametrized (soft masks of a method at work) appears as the weight it
      computes. Other parametrizations are the model's own, and keep their keys.

    Raises:
        FileError: the model has state that no file can hold.
    """
    plain: dict[str, Tensor | SparseLayer[Any]] = {}
    stands_for = _stands_for(model)
    for key, value in model.state_dict(keep_vars=True).items():
        if not isinstance(value, Tensor):
            raise FileError(f"{key}: holds a {type(value).__name__}, and a file holds tensors only")
        if value.is_meta:
            raise FileError(f"{key}: is on the meta device and has no contents; give it real memory first")
        if value.dtype not in DTYPES.values():
            raise FileError(f"{key}: a file cannot hold {value.dtype}; convert it first")
        name, found = stands_for.get(key, (key, value))
        plain[name] = found
    return plain


def _stands_for(model: nn.Module) -> dict[str, tuple[str, Tensor | SparseLayer[Any]]]:
    """Plain name and value of the keys that are not plain."""
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"a model is a torch.nn.Module; got {type(model).__name__}: save(model, path), load(path, into=model)"
        )
    plain: dict[str, tuple[str, Tensor | SparseLayer[Any]]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        dot = f"{name}." if name else ""
        if isinstance(module, SparseLayer):
            plain |= {dot + part: (weight_of(name), module) for part in STORED}
        elif parametrize.is_parametrized(module):
            assert isinstance(module.parametrizations, nn.ModuleDict)
            for part, steps in module.parametrizations.items():
                if all(type(step).__module__.split(".")[0] == "openwork" for step in steps.children()):
                    computed = dot + part, getattr(module, part).detach()
                    keys = steps.state_dict(prefix=f"{dot}parametrizations.{part}.")
                    plain |= dict.fromkeys(keys, computed)
    return plain


def shared_names(state: Plain) -> dict[str, str]:
    """Names whose tensor appears before under another name, and that name: tied weights."""
    first: dict[tuple[object, ...], str] = {}
    shared = {}
    for name, value in state.items():
        sparse = isinstance(value, SparseLayer)
        tensor = value.weight_values if isinstance(value, SparseLayer) else value
        if tensor.numel():
            place = (sparse, tensor.device, tensor.dtype, tensor.data_ptr(), tensor.shape, tensor.stride())
            if first.setdefault(place, name) != name:
                shared[name] = first[place]
    return shared
