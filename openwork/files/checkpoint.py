"""Checkpoints: everything a training run needs to go on as if it had never stopped."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from openwork import archives
from openwork.durable import FileError, replacing
from openwork.sparsifier import Sparsifier

FORMAT = "openwork checkpoint"
VERSION = 1

_PARTS = {"format": str, "version": int, "model": dict, "optimizers": list, "extra": dict}

Path = str | os.PathLike[str]


def save_checkpoint(
    path: Path,
    *,
    model: nn.Module,
    optimizer: Optimizer | Sequence[Optimizer],
    sparsifier: Sparsifier | None = None,
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Write the state of a training run to one file; nothing of the run changes.

    The file is written beside ``path`` and moved there when it is on disk: an interruption at any moment, a kill
    included, leaves the last checkpoint whole.

    A checkpoint is for going on with a run; :func:`openwork.save` writes the smaller file for everything else.

    Args:
        path: file to write; an existing one is replaced.
        model: the model in training, sparsifier attached.
        optimizer: its optimizer, or several.
        sparsifier: what :func:`openwork.attach` returned.
        extra: tensors and plain values of your own: the epoch, a schedule's ``state_dict()``,
            ``torch.get_rng_state()`` of a model with dropout.

    Raises:
        FileError: the file cannot be written, or ``extra`` holds more than tensors and plain values.
    """
    state = model.state_dict()
    content = {
        "format": FORMAT,
        "version": VERSION,
        "model": state,
        "optimizers": [o.state_dict() for o in _several(optimizer)],
        "sparsifier": None if sparsifier is None else sparsifier.state_dict(),
        "extra": dict(extra or {}),
    }
    nbytes = sum(tensor.nbytes for tensor in state.values() if isinstance(tensor, torch.Tensor))
    with replacing(path, nbytes) as temporary:
        with temporary.open("wb") as file:
            torch.save(content, file)
        try:
            archives.read(temporary, mmap=True)
        except ValueError as error:  # told now, not when the checkpoint is needed
            raise FileError(f"{path}: the run holds more than tensors and plain values: {error}") from error


def load_checkpoint(
    path: Path,
    *,
    model: nn.Module,
    optimizer: Optimizer | Sequence[Optimizer],
    sparsifier: Sparsifier | None = None,
) -> dict[str, Any]:
    """Go on from a checkpoint: fill a run that was set up like the one that was saved.

    Build model and optimizer and :func:`openwork.attach` the same method, then load. The steps that follow give
    the bits of a run that was never interrupted. Its checksums are compared, and nothing in it is
    executed: it is read with ``weights_only=True``.

    Args:
        path: a file of :func:`save_checkpoint`.
        model: changed in place.
        optimizer: as many as were saved, in the same order; changed in place.
        sparsifier: changed in place.

    Returns:
        ``extra``, as it was saved.

    Raises:
        FileError: no checkpoint, or one of another run; parts of this run may have been filled by then.
    """
    try:
        content = archives.read(path)
    except FileNotFoundError as error:
        raise FileError(f"{path}: there is no such file") from error
    except ValueError as error:
        raise FileError(f"{path}: not a whole checkpoint of openwork ({error})") from error
    ours = isinstance(content, dict) and all(
        isinstance(content.get(key), kind) for key, kind in _PARTS.items()
    )
    if not ours or content["format"] != FORMAT or "sparsifier" not in content:
        raise FileError(
            f"{path}: not a checkpoint of openwork.save_checkpoint; openwork.load reads what openwork.save wrote"
        )
    if content["version"] != VERSION:
        raise FileError(
            f"{path}: a checkpoint of version {content['version']}; this openwork reads {VERSION}: update openwork"
        )
    optimizers = _several(optimizer)
    if len(content["optimizers"]) != len(optimizers):
        raise FileError(f"{path}: the run has {len(optimizers)} optimizers, the checkpoint another number")
    if (sparsifier is None) != (content["sparsifier"] is None):
        raise FileError(f"{path}: only one of the run and the checkpoint has a sparsifier")
    try:
        model.load_state_dict(content["model"])
        for one, state in zip(optimizers, content["optimizers"], strict=True):
            one.load_state_dict(state)
            _keep_precision(one, state)
        if sparsifier is not None:
            sparsifier.load_state_dict(content["sparsifier"])
    except (ValueError, RuntimeError, TypeError, LookupError, AttributeError) as error:
        raise FileError(f"{path}: a checkpoint of another run: {error}") from error
    extra: dict[str, Any] = content["extra"]
    return extra


def _keep_precision(optimizer: Optimizer, saved: Mapping[str, Any]) -> None:
    """Undo what ``load_state_dict`` of torch does to state of another dtype than its parameter's, such as the products that NAdam
    has in float32: it converts them, and the steps to come would have other bits.
    """
    names = [name for group in saved["param_groups"] for name in group["params"]]
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for name, p in zip(names, parameters, strict=True):
        held = optimizer.state.get(p, {})
        for key, value in saved["state"].get(name, {}).items():
            if isinstance(value, Tensor) and value.dtype != held[key].dtype:
                held[key] = value.to(p.device)


def _several(optimizer: Optimizer | Sequence[Optimizer]) -> list[Optimizer]:
    return [optimizer] if isinstance(optimizer, Optimizer) else list(optimizer)
