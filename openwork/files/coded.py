"""Room in a model for layers that were saved as groups of 4-bit codes, where it has ordinary linear layers so far."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn

from openwork.durable import FileError
from openwork.files.header import DTYPES, Header
from openwork.kernels.group_int4 import check_groups
from openwork.layouts.group_int4 import STORED, GroupInt4Linear
from openwork.layouts.packed import fixed_bias
from openwork.layouts.stored import Stored


def coded_layers(header: Header) -> list[str]:
    """Names of the layers that a file holds as :class:`~openwork.layouts.group_int4.GroupInt4Linear`."""
    names = header.tensors.keys() | header.shared.keys()
    layers = {
        name.removesuffix("codes").removesuffix(".") for name in names if name.split(".")[-1] == "codes"
    }
    return sorted(layer for layer in layers if all(f"{layer}.{part}" in names for part in STORED))


@contextmanager
def room_for_codes(model: nn.Module, header: Header, where: str) -> Iterator[None]:
    """Inside, every ``nn.Linear`` that was saved as codes is a layer of codes, still without contents. On an error the model is
    put back as it was.

    Raises:
        FileError: another number of outputs, or codes that are no plain arrays.
    """
    replaced: list[tuple[nn.Module, str, nn.Module]] = []
    made: dict[nn.Module, nn.Module] = {}  # a module that has two names stays one module
    try:
        for name in coded_layers(header):
            parent_name, _, child = name.rpartition(".")
            linear = _found(model, name)
            if linear is None or not child:
                continue
            if linear not in made:
                made[linear] = _empty(name, linear, header, where)
            parent = model.get_submodule(parent_name)
            replaced.append((parent, child, linear))
            setattr(parent, child, made[linear])
        yield
    except BaseException:
        for parent, child, layer in reversed(replaced):
            setattr(parent, child, layer)
        raise


def check_codes(model: nn.Module, stored: Mapping[str, Stored], where: str) -> None:
    """Prove that the stored arrays of every layer of codes are groups of its weight, before anything is loaded.

    Raises:
        FileError: naming the layer.
    """
    for name, layer in model.named_modules():
        if isinstance(layer, GroupInt4Linear):
            arrays = [stored[f"{name}.{part}" if name else part].dense() for part in STORED]
            codes, scales, zeros, row_ptr, group_col = arrays
            try:
                check_groups(
                    codes, scales, zeros, row_ptr, group_col, (layer.out_features, layer.in_features)
                )
            except (TypeError, ValueError) as error:
                raise FileError(f"{where}: {name}: {error}") from error


def _found(model: nn.Module, name: str) -> nn.Linear | None:
    try:
        layer = model.get_submodule(name)
    except AttributeError:
        return None  # whoever compares names will say so
    return layer if isinstance(layer, nn.Linear) and type(layer) is nn.Linear else None


def _empty(name: str, linear: nn.Linear, header: Header, where: str) -> GroupInt4Linear:
    entries = {part: header.tensors[header.shared.get(f"{name}.{part}", f"{name}.{part}")] for part in STORED}
    for part, entry in entries.items():
        # a plain array is proven to be as large as it says; other layouts, and topologies, may say what they like
        if entry.layout != "dense" or entry.kept is not None:
            raise FileError(f"{where}: {name}.{part} has a topology, and groups of codes are plain arrays")
    rows = entries["row_ptr"].shape
    if rows != (linear.out_features + 1,):
        raise FileError(
            f"{where}: {name} has {linear.out_features} outputs in the model, and {name}.row_ptr is {list(rows)} in the file"
        )
    nothing = torch.zeros(0, dtype=torch.float16)
    layer = GroupInt4Linear(
        torch.zeros(0, 8, dtype=torch.uint8),
        nothing,
        nothing,
        torch.zeros(linear.out_features + 1, dtype=torch.int32),
        torch.zeros(0, dtype=torch.int32),
        in_features=linear.in_features,
        bias=fixed_bias(linear),
    )
    for part, entry in entries.items():
        setattr(layer, part, torch.empty(entry.shape, dtype=DTYPES[entry.dtype]))
    return layer.train(linear.training)
