"""Fill a model from stored tensors, after proving that every one of them fits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from openwork.durable import FileError
from openwork.files.coded import check_codes
from openwork.files.header import DTYPES, Entry, Header, nearest, weight_of
from openwork.files.names import Plain, plain_state, shared_names
from openwork.layouts.forms import storable
from openwork.layouts.forms import stored as as_stored
from openwork.layouts.layer import SparseLayer
from openwork.layouts.stored import Stored


def fill(model: nn.Module, stored: Mapping[str, Stored], header: Header, dense: bool, where: str) -> None:
    """Load ``stored`` into a ``model`` that it fits, see :func:`check_fit`; on any error the model has not changed.

    Args:
        model: changed in place.
        stored: tensors by plain name, already proven sound.
        header: of the file.
        dense: do not replace dense layers by sparse ones.
        where: how an error begins.
    """
    stored = dict(stored) | {alias: stored[name] for alias, name in header.shared.items()}
    state = plain_state(model)
    for alias, name in shared_names(state).items():
        _check_shared(alias, name, stored, where)
    check_codes(model, stored, where)
    replaced = [] if dense else _replaceable(model, header, where)

    made: dict[nn.Module, SparseLayer[Any]] = {}  # a module that has two names stays one module
    for name in replaced:
        parent, _, child = name.rpartition(".")
        layer = model.get_submodule(name)
        if layer not in made:
            topology = stored[weight_of(name)].topology
            made[layer] = as_stored(layer, topology)
        setattr(model.get_submodule(parent), child, made[layer])
    model.load_state_dict(_state(plain_state(model), stored))


def check_fit(model: nn.Module, header: Header, where: str) -> None:
    """Prove that the names, shapes and dtypes in a file are the model's, before any array of it is read."""
    stored = dict(header.tensors) | {alias: header.tensors[name] for alias, name in header.shared.items()}
    state = plain_state(model)
    _check_names(model, state, stored, where)
    for name, value in state.items():
        _check_one(name, value, stored[name], where)


def _check_names(model: nn.Module, state: Plain, stored: Mapping[str, Entry], where: str) -> None:
    missing = [name for name in state if name not in stored]
    unexpected = [name for name in stored if name not in state]
    if missing or unexpected:
        told = [f"the model's {name} is not in the file{nearest(name, unexpected)}" for name in missing[:5]]
        told += [f"the file's {name} is not in the model{nearest(name, missing)}" for name in unexpected[:5]]
        more = len(missing) + len(unexpected) - len(told)
        raise FileError(f"{where}: " + "; ".join(told) + (f"; and {more} more" if more else ""))
    keys = model.state_dict().keys()
    for name, value in state.items():
        if name not in keys and not isinstance(value, SparseLayer):
            raise FileError(
                f"{where}: {name} is computed by a method at work on the model; detach that first"
            )


def _check_one(name: str, value: Tensor | SparseLayer[Any], stored: Entry, where: str) -> None:
    sparse = isinstance(value, SparseLayer)
    shape = value.weight_shape if isinstance(value, SparseLayer) else tuple(value.shape)
    dtype = value.weight_values.dtype if isinstance(value, SparseLayer) else value.dtype
    if stored.shape != shape:
        raise FileError(f"{where}: {name} is {list(stored.shape)} in the file and {list(shape)} in the model")
    if DTYPES[stored.dtype] != dtype:
        both = f"{DTYPES[stored.dtype]} in the file and {dtype} in the model"
        raise FileError(f"{where}: {name} is {both}; convert the model with .to() before loading")
    if sparse and stored.kept is None:
        raise FileError(
            f"{where}: {name} was saved without a topology, and the model has a sparse layer there; "
            "load into a model with a dense one"
        )


def _check_shared(alias: str, name: str, stored: Mapping[str, Stored], where: str) -> None:
    one, other = stored[alias], stored[name]
    if one is not other:
        bits = [tensor.dense().contiguous().flatten().view(torch.uint8) for tensor in (one, other)]
        if not torch.equal(*bits):
            raise FileError(f"{where}: {alias} and {name} are one tensor in the model and differ in the file")


def _replaceable(model: nn.Module, header: Header, where: str) -> list[str]:
    """Names of the modules that become a :class:`SparseLayer`."""
    replaced = []
    for name in header.sparse_layers:
        module = model.get_submodule(name)
        if isinstance(module, SparseLayer):
            continue
        if not storable(module) or not name:
            found = f"{name} is a {type(module).__name__}" if name else "the layer is the whole model"
            raise FileError(
                f"{where}: {weight_of(name)} was saved from a sparse layer, but {found} here, which cannot "
                "be replaced by one; pass dense=True to fill it with the dense weight"
            )
        replaced.append(name)
    return replaced


def _state(state: Plain, stored: Mapping[str, Stored]) -> dict[str, Tensor]:
    """The ``state_dict`` that the model asks for."""
    filled: dict[str, Tensor] = {}
    for name, value in state.items():
        if isinstance(value, SparseLayer):
            topology, values = stored[name].topology, stored[name].values
            filled |= {f"{name}_values": values, f"{name}_crow": topology.crow, f"{name}_col": topology.col}
        else:
            filled[name] = stored[name].dense()
    return filled
