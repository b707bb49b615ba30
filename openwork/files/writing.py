"""Save: a model as one file that is as small as its zeros allow."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

import msgspec
from torch import Tensor, nn

import openwork
from openwork.durable import FileError
from openwork.files.container import write
from openwork.files.header import FORMAT_VERSION, Entry, Header, array_digest, nearest, weight_of
from openwork.files.names import Plain, plain_state, shared_names
from openwork.files.reading import load
from openwork.layouts.layer import SparseLayer
from openwork.layouts.stored import Stored, store, store_as_is, store_values

Path = str | os.PathLike[str]


def save(
    model: nn.Module,
    path: Path,
    *,
    storage: Literal["sparse", "dense"] = "sparse",
    masks: Mapping[str, Tensor] | None = None,
    history: Sequence[Mapping[str, object]] | None = None,
) -> None:
    """Write the state of ``model`` to one safetensors file; the model does not change.

    Every :class:`~openwork.layouts.layer.SparseLayer`, and every other parameter of two or more dimensions
    with enough zeros, is written as kept values and a compact index, in whichever layout takes the fewest
    bytes (:mod:`openwork.layouts.stored`); everything else as it is. Kept weights come back with the same
    bits, NaN included; a -0.0 where nothing is kept, as pruning by multiplication leaves it, comes back as
    0.0.

    The file is written beside ``path`` and moved there when complete, so a crash or a full disk never leaves
    half a file.

    Args:
        model: any module. A tied weight is written once.
        path: file to write; an existing one is replaced.
        storage: "sparse", or "dense" for plain tensors with zeros in them, where a kept zero can no longer be
            told from a pruned one.
        masks: boolean tensors by parameter name, ``{"fc.weight": mask}``, True = kept. Needed where kept
            weights may be zero, as grown connections are; other parameters keep what is not zero.
        history: transformations to record, in order, each a mapping that JSON can hold.

    Raises:
        FileError: the file cannot be written, a mask does not fit, or the model holds more than tensors.
    """
    if storage not in ("sparse", "dense"):
        raise FileError(f"storage is 'sparse' or 'dense', not {storage!r}")
    if storage == "dense" and masks:
        raise FileError(f"masks are for storage='sparse'; storage={storage!r} has no place for them")
    arrays, header = arranged(model, masks=masks, history=history, dense=storage == "dense")
    write(path, arrays, header.metadata())


def arranged(
    model: nn.Module,
    *,
    masks: Mapping[str, Tensor] | None = None,
    history: Sequence[Mapping[str, object]] | None = None,
    dense: bool = False,
    as_is: Collection[str] = (),
    as_layers: Collection[str] = (),
) -> tuple[dict[str, Tensor], Header]:
    """The arrays of a file and the header that describes them; nothing is written.

    Args:
        model: any module; it does not change.
        masks: of parameters whose kept weights may be zero.
        history: transformations to record.
        dense: store every tensor with its zeros.
        as_is: parameters to store with their zeros, by plain name.
        as_layers: dense layers, by name, that :func:`openwork.load` shall make a
            :class:`~openwork.layouts.layer.SparseLayer` if they turn out to have a topology.

    Raises:
        FileError: as :func:`save`.
    """
    state = plain_state(model)
    shared = shared_names(state)
    own = [name for name in state if name not in shared]
    if dense:
        stored = [store_as_is(name, _dense(state[name])) for name in own]
    else:
        given = {shared.get(name, name): mask for name, mask in (masks or {}).items()}
        allowed = _checked_masks(model, state, given)
        for name in as_is:
            allowed.pop(name, None)
        stored = [_stored(name, state[name], allowed) for name in own]
    arrays: dict[str, Tensor] = {}
    for tensor in stored:
        for suffix, array in tensor.arrays.items():
            if tensor.name + suffix in arrays:
                raise FileError(f"{tensor.name}{suffix} would be in the file twice; rename that parameter")
            arrays[tensor.name + suffix] = array
    thin = {tensor.name for tensor in stored if tensor.kept is not None}
    layers = [
        name
        for name, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, SparseLayer) or (name in as_layers and weight_of(name) in thin)
    ]
    return arrays, Header(
        format_version=FORMAT_VERSION,
        openwork=openwork.__version__,
        tensors={
            t.name: Entry(t.layout, t.shape, str(t.dtype).removeprefix("torch."), t.kept) for t in stored
        },
        sparse_layers=() if dense else tuple(layers),
        shared=shared,
        history=_checked_history(history or ()),
        sha256={key: array_digest(array) for key, array in arrays.items()},
    )


def export_dense(model: nn.Module | Path, path: Path) -> None:
    """Write an ordinary safetensors checkpoint: plain names and dense tensors, nothing of openwork in it.

    Any safetensors reader loads it into the dense model. It is not smaller and not faster than a model that
    was never pruned.

    Args:
        model: a module, or the path of a file written by :func:`save`.
        path: file to write.
    """
    if isinstance(model, nn.Module):
        state = {name: _dense(value) for name, value in plain_state(model).items()}
    else:
        state = load(model)
    write(path, state, {"format": "pt"})


def _stored(name: str, value: Tensor | SparseLayer[Any], masks: Mapping[str, Tensor | None]) -> Stored:
    try:
        if isinstance(value, SparseLayer):
            return store_values(name, value.weight_values, value.topology.validate(name), value.weight_shape)
        return store(name, value, masks[name]) if name in masks else store_as_is(name, value)
    except ValueError as error:
        raise FileError(str(error)) from error


def _checked_masks(model: nn.Module, state: Plain, masks: Mapping[str, Tensor]) -> dict[str, Tensor | None]:
    """The mask of every parameter that may be stored sparse; None = keep what is not zero."""
    raw = dict(model.named_parameters(remove_duplicate=False))
    # A name that the model does not have itself is a weight that a parametrization computes.
    own = {name for name in state if name in raw or name not in model.state_dict()}
    for name in masks:
        if name not in own:
            raise FileError(
                f"{name}: a mask is given, but the model has no such parameter{nearest(name, own)}"
            )
        if isinstance(state[name], SparseLayer):
            raise FileError(f"{name}: a sparse layer knows its own connections; leave its mask out")
    return {name: masks.get(name) for name in own}


def _checked_history(history: Sequence[Mapping[str, object]]) -> tuple[dict[str, object], ...]:
    try:
        return msgspec.json.decode(msgspec.json.encode(list(history)), type=tuple[dict[str, object], ...])
    except (msgspec.MsgspecError, TypeError) as error:
        raise FileError(f"the history must be a list of mappings that JSON can hold: {error}") from error


def _dense(value: Tensor | SparseLayer[Any]) -> Tensor:
    return (value.weight if isinstance(value, SparseLayer) else value.detach()).cpu()
