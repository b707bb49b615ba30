"""Sparse linear layers one after another: activations stay in the form the kernels compute in.

A sparse kernel computes on tiles, 64 samples side by side for each feature (:mod:`openwork.kernels.tiles`), and a layer
by itself converts PyTorch's ``[batch, features]`` to tiles and back, in both directions of training. Between two sparse
layers with nothing but functions of single elements between them, that is for nobody. A :class:`Chain` converts where a
row of such layers begins and where it ends, and applies ReLU while it writes the outputs of a layer.

The numbers are the same, bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from openwork.kernels.index import TILE_WIDTH
from openwork.kernels.linear import is_native
from openwork.kernels.tiles import pack_tiles
from openwork.layouts.linear import SparseLinear

POINTWISE = (
    nn.ReLU, nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid, nn.LeakyReLU, nn.ELU, nn.CELU, nn.SELU, nn.ReLU6, nn.Hardtanh,
    nn.Hardswish, nn.Hardsigmoid, nn.Mish, nn.Softplus, nn.Softsign, nn.LogSigmoid, nn.Identity,
)  # fmt: skip
"""Modules that see each element alone, so they do not care how the elements lie. (Dropout draws its numbers in the order of
memory: on tiles it would be as good, but not the same.)"""

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

    def release(self) -> None:
        """Become an ordinary ``nn.Sequential`` again."""
        self.__class__ = nn.Sequential  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        """As ``nn.Sequential``."""
        modules = list(self._modules.values())
        at = 0
        while at < len(modules):
            found, end = links(modules, at)
            if len(found) > 1 and _suits(x, found):
                x, at = _run(x, found), end
            else:
                x, at = cast("nn.Module", modules[at])(x), at + 1
        return x


def links(modules: Sequence[nn.Module | None], at: int = 0) -> tuple[list[Link], int]:
    """The links that begin with module ``at``, and where the first module stands that is not part of them."""
    found: list[Link] = []
    while at < len(modules):
        layer = modules[at]
        if type(layer) is not SparseLinear or _is_watched(layer):
            break
        at += 1
        after = []
        while at < len(modules) and type(module := modules[at]) in POINTWISE and not _is_watched(module):
            after.append(module)
            at += 1
        relu = bool(after) and type(after[0]) is nn.ReLU
        found.append(Link(layer, "relu" if relu else "none", tuple(after[relu:])))
    return found, at


def chain_(model: nn.Module) -> None:
    """Turn every ``nn.Sequential`` in ``model`` that has sparse layers to chain into a :class:`Chain`, in place."""
    for module in model.modules():
        if type(module) is nn.Sequential:
            modules = list(module._modules.values())
            if any(len(links(modules, at)[0]) > 1 for at in range(len(modules))):
                Chain.adopt(module)


def unchain_(model: nn.Module) -> None:
    """Turn every :class:`Chain` in ``model`` into an ordinary ``nn.Sequential`` again, in place."""
    for module in model.modules():
        if type(module) is Chain:
            module.release()


def _run(x: Tensor, found: Sequence[Link]) -> Tensor:
    x = found[0].layer._in_precision(x)
    batch, tiles = x.shape[0], pack_tiles(x)
    for link in found[:-1]:
        tiles = link.layer.on_tiles(tiles, link.activation)
        for module in link.after:
            tiles = module(tiles)
    y = found[-1].layer.on_tiles(tiles, found[-1].activation, batch)
    for module in found[-1].after:
        y = module(y)
    return y


def _suits(x: Tensor, found: Sequence[Link]) -> bool:
    """Whether ``x`` can go through the links in tiles."""
    if not isinstance(x, Tensor) or x.dim() != 2 or x.shape[1] != found[0].layer.in_features:
        return False
    batch = x.shape[0]
    padding = -batch % TILE_WIDTH
    if padding > LARGEST_PADDING * (batch + padding) or batch == 0:
        return False
    if not torch.compiler.is_compiling() and (
        torch._C._are_functorch_transforms_active() or torch._C._is_tracing()
    ):
        return False
    x = x[:0] if torch.is_autocast_enabled(x.device.type) else x
    return all(
        is_native(link.layer._in_precision(x), link.layer.weight_values, link.layer.bias)
        and not link.layer.observe
        for link in found
    )


def _is_watched(module: nn.Module) -> bool:
    """Whether someone sees what goes into the module or comes out of it, or its gradients."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or torch_module._has_any_global_hook()
    )
