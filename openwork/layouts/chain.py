"""Sparse linear layers one after another: activations stay in the form the kernels compute in.

A sparse kernel computes on tiles, 64 samples side by side for each feature (:mod:`openwork.kernels.tiles`), and a layer
by itself converts PyTorch's ``[batch, features]`` to tiles and back, in both directions of training. Between two sparse
layers with nothing but functions of single elements between them, that is for nobody. A :class:`Chain` converts where a
row of such layers begins and where it ends, and applies ReLU while it writes the outputs of a layer.

The numbers are the same, bit for bit.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from openwork.kernels.chain import Stage, chained_linear
from openwork.kernels.index import TILE_WIDTH
from openwork.kernels.tiles import pack_tiles
from openwork.layouts.linear import SparseLinear
from openwork.layouts.packed import PackedLinear

POINTWISE = (
    nn.ReLU, nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid, nn.LeakyReLU, nn.ELU, nn.CELU, nn.SELU, nn.ReLU6, nn.Hardtanh,
    nn.Hardswish, nn.Hardsigmoid, nn.Mish, nn.Softplus, nn.Softsign, nn.LogSigmoid, nn.Identity,
)  # fmt: skip
"""Modules that see each element alone, so they do not care how the elements lie. (Dropout draws its numbers in the order of
memory: on tiles it would be as good, but not the same.)"""

LAYERS = (SparseLinear, PackedLinear)

LARGEST_PADDING = 1 / 4
"""The part of the last tile's work that may be for samples that the batch does not have, of the work on all tiles. Above, narrow
tiles, which only a layer by itself can choose, save more than the conversions cost."""


@dataclass(frozen=True)
class Link:
    """A layer and what follows it before the next one.

    Attributes:
        layer: a sparse layer.
        activation: ``relu`` or ``none``: applied by the kernel.
        after: pointwise modules behind that.
    """

    layer: SparseLinear
    activation: str
    after: tuple[nn.Module, ...]

    @property
    def stage(self) -> Stage:
        """The link as the kernels see it."""
        layer = self.layer
        return Stage(layer.prepared, layer.weight_values, layer.bias, self.activation == "relu")


class Chain(nn.Sequential):
    """An ``nn.Sequential`` whose sparse layers hand their activations on in tiles.

    It has the modules, names and results of the ``nn.Sequential``. Batches whose last tile would be mostly padding, types that no
    native kernel computes, layers that are observed, and modules with hooks (which may look at an activation) take the ordinary
    way.
    """

    @classmethod
    def adopt(cls, sequential: nn.Sequential) -> None:
        """Turn an ``nn.Sequential`` into a chain: the same object, so that whoever holds it has the chain."""
        sequential.__class__ = cls

    @staticmethod
    def release(sequential: nn.Sequential) -> None:
        """Turn a chain into an ordinary ``nn.Sequential`` again."""
        sequential.__class__ = nn.Sequential

    def forward(self, x: Tensor) -> Tensor:
        """As ``nn.Sequential``."""
        return through(list(self), x)


def through(modules: Sequence[nn.Module], x: Tensor) -> Tensor:
    """``x`` through modules one after the other, in tiles from layer to layer where that suits."""
    at = 0
    while at < len(modules):
        found, end = links(modules, at)
        if len(found) > 1 and _suits(x, found):
            x, at = _run(x, found), end
        else:
            x, at = modules[at](x), at + 1
    return x


def chained(model: nn.Module, layers: Collection[nn.Module]) -> set[nn.Module]:
    """Those of some linear layers that :func:`chain_` would let hand on tiles if they were sparse."""
    found: set[nn.Module] = set()
    for module in model.modules():
        if type(module) not in (nn.Sequential, Chain):
            continue
        row: list[nn.Module] = []
        for one in (*module.children(), None):
            if one in layers and isinstance(one, nn.Linear):
                row.append(one)
            elif type(one) not in POINTWISE:
                found |= set(row) if len(row) > 1 else set()
                row = []
    return found


def links(modules: Sequence[nn.Module], at: int = 0) -> tuple[list[Link], int]:
    """The links that begin with module ``at``, and where the first module stands that is not part of them."""
    found: list[Link] = []
    while at < len(modules):
        layer = modules[at]
        if not isinstance(layer, SparseLinear) or type(layer) not in LAYERS or is_watched(layer):
            break
        at += 1
        after: list[nn.Module] = []
        while at < len(modules) and type(module := modules[at]) in POINTWISE and not is_watched(module):
            after.append(module)
            at += 1
        relu = len(after) > 0 and type(after[0]) is nn.ReLU
        found.append(Link(layer, "relu" if relu else "none", tuple(after[relu:])))
    return found, at


M = TypeVar("M", bound=nn.Module)


def chain_(model: M) -> M:
    """Turn every ``nn.Sequential`` in ``model`` that has sparse layers to chain into a :class:`Chain`, in place.

    What :func:`openwork.to_sparse_` does at its end; for models that were built of sparse layers in the first place.

    Returns:
        The model.
    """
    for module in model.modules():
        if type(module) is nn.Sequential:
            modules = list(module)
            if any(len(links(modules, at)[0]) > 1 for at in range(len(modules))):
                Chain.adopt(module)
    return model


def unchain_(model: nn.Module) -> None:
    """Turn every :class:`Chain` in ``model`` into an ordinary ``nn.Sequential`` again, in place."""
    for module in model.modules():
        if type(module) is Chain:
            Chain.release(module)


def _run(x: Tensor, found: Sequence[Link]) -> Tensor:
    x = found[0].layer._in_precision(x)
    if any(type(link.layer) is not SparseLinear for link in found) or any(link.after for link in found[:-1]):
        y = _one_by_one(x, found)
    else:
        y = chained_linear(x, [link.stage for link in found])
    for module in found[-1].after:
        y = module(y)
    return y


def _one_by_one(x: Tensor, found: Sequence[Link]) -> Tensor:
    tiles = pack_tiles(x)
    for link in found[:-1]:
        tiles = link.layer.on_tiles(tiles, link.activation)
        for module in link.after:
            tiles = module(tiles)
    return found[-1].layer.on_tiles(tiles, found[-1].activation, x.shape[0])


def _suits(x: object, found: Sequence[Link]) -> bool:
    """Whether ``x`` can go through the links in tiles."""
    if not isinstance(x, Tensor) or x.dim() != 2 or x.shape[1] != found[0].layer.in_features:
        return False
    batch = x.shape[0]
    padding = -batch % TILE_WIDTH
    if padding > LARGEST_PADDING * (batch + padding) or batch == 0:
        return False
    # A transform knows no rule for tiles, and a recorded trace would hold on to this very size of batch.
    if not torch.compiler.is_compiling() and (
        torch._C._are_functorch_transforms_active() or torch._C._is_tracing()
    ):
        return False
    return all(link.layer.takes_tiles(x) for link in found)


def is_watched(module: nn.Module) -> bool:
    """Whether someone sees what goes into the module or comes out of it, or its gradients."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or torch_module._has_any_global_hook()
    )
