"""What is done of a walk, block by block, so that a kill costs one block."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from openwork import archives
from openwork.calibrator.batches import Batches
from openwork.calibrator.report import Line
from openwork.calibrator.workshop import Workshop
from openwork.durable import FileError, replacing
from openwork.factorization import Factors
from openwork.layouts.csr import CSR
from openwork.layouts.low_rank import CompensatedLinear
from openwork.layouts.outliers import Outliers
from openwork.layouts.rounded import RoundedInputLinear
from openwork.matrices import Matrix
from openwork.method import Method
from openwork.quantization import FloatGrid, IntegerGrid, Placement, Quantized
from openwork.quantization.two_level import TwoLevel

FORMAT = "openwork calibration 1"

PARTS = (CSR, Factors, FloatGrid, IntegerGrid, Outliers, Placement, Quantized, TwoLevel)
"""What stages describe their results in; a checkpoint holds nothing else beside tensors and plain values."""

KINDS = {kind.__name__: kind for kind in (CompensatedLinear, RoundedInputLinear)}
"""Layers that stages put in the place of an ``nn.Linear``: made around it from tensors and grids, which a checkpoint holds."""


class Checkpoint:
    """A folder with one file for each block that is done.

    Each file is written beside its name and moved there once it is on disk, so a kill at any moment leaves whole files only. They
    belong to one model, recipe and data, told by their hash.

    Args:
        folder: made if it does not exist.
        model: dense, as the walk begins.
        stages: the recipe.
        batches: the data.
        masks: to begin with.
        settings: whatever else decides the result.

    Raises:
        FileError: the folder holds a walk over another model, with another recipe or other data.
    """

    def __init__(
        self,
        folder: Path,
        model: nn.Module,
        stages: Sequence[Method],
        batches: Batches,
        masks: Mapping[str, Tensor],
        settings: object,
    ) -> None:
        self._folder = folder
        self._run = _fingerprint(model, stages, batches, masks, settings)
        self._whole = True
        folder.mkdir(parents=True, exist_ok=True)
        for path in sorted(folder.glob("block-*.pt")):
            self._read(path)

    def restore(self, index: int, block: nn.Module, layers: Sequence[Matrix], shop: Workshop) -> bool:
        """Take over block ``index`` if it was done; returns whether it was."""
        path = self._path(index)
        if not self._whole or not path.exists():
            self._whole = False  # what comes after a gap was calibrated on something else
            return False
        state = self._read(path)
        try:
            _restored(state, block, layers, shop)
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise FileError(f"{path}: a checkpoint of another calibration: {error}") from error
        return True

    def save(
        self, index: int, block: nn.Module, layers: Sequence[Matrix], shop: Workshop, since: int
    ) -> None:
        """Write that block ``index`` is done.

        Args:
            since: lines of the table that were there before the block.

        Raises:
            ValueError: a stage put a module in the place of a layer that a file of tensors cannot hold.
        """
        names = {m.name for m in layers}
        replaced = {name: module for name, module in shop.replaced.items() if name in names}
        for name, module in replaced.items():
            if type(module) not in KINDS.values():
                raise ValueError(
                    f"{name} belongs to a {type(module).__name__} now, and a checkpoint holds tensors only: leave checkpoint= "
                    "out for recipes that put modules of their own in the place of layers"
                )
        state = {
            "format": FORMAT,
            "run": self._run,
            "block": block.state_dict(),
            "replaced": {name: _described(module) for name, module in replaced.items()},
            "biases": {m.name: m.bias.detach() for m in layers if m.bias is not None},
            "masks": {m.weight.name: shop.masks[m.weight.name] for m in layers},
            "lines": [dataclasses.asdict(line) for line in shop.lines[since:]],
            "parts": {
                name: parts for name, parts in shop.parts.items() if name in names or _holds(name, names)
            },
        }
        with replacing(self._path(index), sum(t.nbytes for t in block.state_dict().values())) as temporary:
            torch.save(state, temporary)

    def _path(self, index: int) -> Path:
        return self._folder / f"block-{index:04}.pt"

    def _read(self, path: Path) -> dict[str, Any]:
        try:
            state = archives.read(path, PARTS)
        except ValueError as error:
            raise FileError(
                f"{path}: no whole checkpoint of a calibration ({error}); delete the folder to begin again"
            ) from error
        if not isinstance(state, dict):
            raise FileError(f"{path}: no checkpoint of a calibration; delete the folder to begin again")
        if state.get("format") != FORMAT or state.get("run") != self._run:
            raise FileError(
                f"{path}: a checkpoint of another model, recipe or data (or the model is not the dense one any more); name "
                "another folder, or delete this one to begin again"
            )
        return state


def _restored(state: Mapping[str, Any], block: nn.Module, layers: Sequence[Matrix], shop: Workshop) -> None:
    for m in layers:
        if (bias := state["biases"].get(m.name)) is not None and m.bias is None:
            shop.add_bias(m, bias)
        if (described := state.get("replaced", {}).get(m.name)) is not None:
            kind, beside = described
            linear: Any = m.weight.module
            shop.replace(m, KINDS[kind].around(linear, *beside))
    block.load_state_dict(state["block"])
    for m in layers:
        shop.masks[m.weight.name].copy_(state["masks"][m.weight.name])
    shop.lines += [Line(**line) for line in state["lines"]]
    shop.parts |= state["parts"]


def _described(module: nn.Module) -> tuple[str, tuple[Any, ...]]:
    """The kind of a layer in the place of another, and what it is made of."""
    assert isinstance(module, (CompensatedLinear, RoundedInputLinear))
    return type(module).__name__, module.beside()


def _fingerprint(
    model: nn.Module,
    stages: Sequence[Method],
    batches: Batches,
    masks: Mapping[str, Tensor],
    settings: object,
) -> str:
    digest = hashlib.blake2b(digest_size=16)
    digest.update(json.dumps([[stage.record() for stage in stages], repr(settings)], default=repr).encode())
    for name, tensor in (*model.state_dict().items(), *sorted(masks.items())):
        digest.update(name.encode())
        _add(digest, tensor)
    for b in range(len(batches)):
        for leaf in tree_leaves(dict(enumerate([batches[b]]))):
            _add(digest, leaf) if isinstance(leaf, Tensor) else digest.update(repr(leaf).encode())
    return digest.hexdigest()


def _add(digest: Any, tensor: Tensor) -> None:
    digest.update(f"{tensor.dtype} {list(tensor.shape)}".encode())
    digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())


def _holds(block: str, layers: Iterable[str]) -> bool:
    """Whether this is the name of the block that has these layers; the whole model as one block has none."""
    return not block or all(layer.startswith(f"{block}.") for layer in layers)
