"""A fine-tuned model as a small file: what is left of its delta, for whoever has the base.

Where the method draws its masks, such as :class:`openwork.DARE`, the file holds values and a seed; otherwise values and where
they go. It also holds a digest of every tensor of the base and of the result, so that a delta is never added to another model,
and what is rebuilt is what was saved.
"""

from __future__ import annotations

import json
import os
from typing import Any

import torch
from torch import Tensor, nn

from openwork.deltas import added
from openwork.durable import FileError
from openwork.files.container import Container, opened, write
from openwork.files.header import array_digest
from openwork.merger import Merging
from openwork.merger.matching import State, matched, state_of
from openwork.merger.thinning import Thinning
from openwork.progress import track
from openwork.recipe import stage
from openwork.weights import unwrapped

KEY = "openwork_delta"
"""Of the header in the file's metadata: JSON with ``format`` (1), ``method``, ``keep_zeros`` and the digests of every tensor."""


@torch.no_grad()
def save_delta(
    path: str | os.PathLike[str],
    base: nn.Module,
    tuned: nn.Module | State,
    method: Merging,
    *,
    keep_zeros: bool = True,
    dtype: torch.dtype | None = None,
) -> None:
    """Write what ``method`` leaves of ``tuned - base``.

    Args:
        path: of the file.
        base: the model that was fine-tuned; not changed.
        tuned: what became of it, a model or its ``state_dict``.
        method: how the delta is thinned, such as ``ow.DARE(sparsity=0.99)``.
        keep_zeros: see :func:`openwork.merge_`.
        dtype: of the stored changes; float32, or float64 for parameters that are.

    Raises:
        ValueError: the models do not match, see :func:`openwork.merge_`.
        FileError: the file could not be written.
    """
    base = unwrapped(base)
    state_of(base)
    state = state_of(tuned)
    thinning = Thinning(method, base, matched(base, state, "the tuned model"), keep_zeros=keep_zeros)
    arrays: dict[str, Tensor] = {}
    digests: dict[str, tuple[str, str]] = {}
    for name, p in track(list(base.named_parameters()), "taking the delta"):
        left = thinning.left(name)
        change = method.scale * method.combine([left.change])
        precise = dtype or (torch.float64 if p.dtype == torch.float64 else torch.float32)
        if left.mask is None:
            arrays[f"values {name}"] = held = change.to(precise).cpu()
            change = held.double()
        else:
            positions = left.mask.flatten().nonzero().flatten()
            arrays[f"values {name}"] = held = change.flatten()[positions].to(precise).cpu()
            if not method.draws:
                narrow = torch.int32 if p.numel() < 2**31 else torch.int64
                arrays[f"positions {name}"] = positions.to(narrow).cpu()
            change = _scattered(held, positions.cpu(), p)
        digests[name] = _digest(p), _digest(added(p, change.to(p.device)))
    for name, buffer in base.named_buffers():
        if name in state and buffer.is_floating_point() and name in base.state_dict():
            arrays[f"buffer {name}"] = state[name].detach().cpu()
    header = {"format": 1, "method": method.record(), "keep_zeros": keep_zeros, "digests": digests}
    header["buffers"] = {key: _digest(array) for key, array in arrays.items() if key.startswith("buffer ")}
    write(path, arrays, {KEY: json.dumps(header)})


@torch.no_grad()
def add_delta_(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Add a saved delta to the ``model`` that it was taken from, in place.

    Raises:
        FileError: the file is no delta, is damaged, or is that of another base. The model has not changed then.
    """
    model = unwrapped(model)
    state_of(model)
    with opened(path) as container:
        header = _header(container)
        method = _method(header, container.where)
        own = dict(model.named_parameters())
        if different := header["digests"].keys() ^ own.keys():
            raise FileError(f"{container.where}: only one of base and delta has {min(different)}")
        for name, p in own.items():
            if header["digests"][name][0] != _digest(p):
                raise FileError(
                    f"{container.where}: this is the delta of another base: {name} is not the tensor it was taken from"
                )
        try:
            thinning = Thinning(method, model, own, keep_zeros=header["keep_zeros"])
        except ValueError as error:
            raise FileError(f"{container.where}: no delta of this model: {error}") from error
        result = {}
        for name, p in track(list(own.items()), "adding the delta"):
            result[name] = added(p, _change(container, thinning, name, p).to(p.device))
            if _digest(result[name]) != header["digests"][name][1]:
                raise FileError(
                    f"{container.where}: {name} does not come out as it was saved; the file is damaged, or its mask drawn by a "
                    "torch with another random generator"
                )
        buffers = {
            n: _buffer(container, header, n, buffer)
            for n, buffer in model.named_buffers()
            if f"buffer {n}" in header["buffers"]
        }
    for name, p in own.items():
        p.copy_(result[name])
    for name, buffer in buffers.items():
        model.get_buffer(name).copy_(buffer)


def _change(container: Container, thinning: Thinning, name: str, p: Tensor) -> Tensor:
    if f"values {name}" not in container.arrays:
        raise FileError(f"{container.where}: holds nothing for {name}; fetch or save it again")
    values = container.read(f"values {name}")
    if name not in thinning.weights:
        if values.shape != p.shape:
            raise FileError(
                f"{container.where}: {name} is {list(p.shape)}, and its delta {list(values.shape)}"
            )
        return values.double()
    if f"positions {name}" in container.arrays:
        positions = container.read(f"positions {name}").long()
    else:
        mask = thinning.weights[name].restored(thinning.mask(name))
        positions = mask.flatten().nonzero().flatten().cpu()
    fits = values.shape == positions.shape and values.dim() == 1
    if not fits or (len(positions) and not 0 <= int(positions.min()) <= int(positions.max()) < p.numel()):
        raise FileError(f"{container.where}: the positions of {name} do not fit it; fetch or save it again")
    return _scattered(values, positions, p)


def _buffer(container: Container, header: Any, name: str, own: Tensor) -> Tensor:
    key = f"buffer {name}"
    found = container.read(key) if key in container.arrays else None
    if found is None or found.shape != own.shape or _digest(found) != header["buffers"][key]:
        raise FileError(f"{container.where}: {key} is not what was saved; fetch or save it again")
    return found


def _scattered(values: Tensor, positions: Tensor, p: Tensor) -> Tensor:
    dense = torch.zeros(p.numel(), dtype=torch.float64)
    dense[positions] = values.double()
    return dense.view(p.shape)


def _digest(tensor: Tensor) -> str:
    return array_digest(tensor.detach().cpu().contiguous())


def _header(container: Container) -> Any:
    try:
        header = json.loads(container.metadata[KEY])
        newer = type(header["format"]) is int and header["format"] > 1
        well = all(isinstance(header[key], dict) for key in ("method", "digests", "buffers"))
        well &= isinstance(header["keep_zeros"], bool)
        if header["format"] != 1 and not newer:
            raise KeyError("format")
        if not well or not all(isinstance(d, list) and len(d) == 2 for d in header["digests"].values()):
            raise KeyError("digests")
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise FileError(f"{container.where}: not the file of a delta, see openwork.save_delta") from error
    if newer:
        raise FileError(
            f"{container.where}: a delta of format {header['format']}, and this openwork reads format 1: update openwork"
        )
    return header


def _method(header: Any, where: str) -> Merging:
    try:
        method = stage(header["method"], where)
    except ValueError as error:
        raise FileError(str(error)) from error
    if not isinstance(method, Merging):
        raise FileError(f"{where}: {method.name} is no method that makes deltas")
    return method
