"""Sparse linear layers in a chain: activations stay in feature-major tiles, converted only at the two ends.

A tile holds 64 samples side by side for each feature, [features, 64]; a batch is [ceil(batch / 64), features,
64]. That is the form the kernels compute in, so a chain of sparse layers saves two conversions a layer, which
count above 95 % sparsity. Samples that fill up the last tile are zeros on the way in, whatever the layers
make of them inside, and gone on the way out.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from openwork.kernels import linear, native, reference
from openwork.kernels.execution import is_native, is_traced
from openwork.kernels.index import TILE_WIDTH, Prepared
from openwork.kernels.products import laid_out

_library = torch.library.Library("openwork", "FRAGMENT")
_library.define("pack_tiles(Tensor x) -> Tensor", tags=(torch.Tag.pt2_compliant_tag,))
_library.define("unpack_tiles(Tensor tiles, SymInt batch) -> Tensor", tags=(torch.Tag.pt2_compliant_tag,))


def pack_tiles(x: Tensor) -> Tensor:
    """[batch, features] to tiles [ceil(batch / 64), features, 64]."""
    if x.dim() != 2:
        raise ValueError(f"x must be [batch, features], found {list(x.shape)}.")
    if not is_native(x):
        return reference.pack_tiles(x)
    traced = is_traced(x) or (x.requires_grad and torch.is_grad_enabled())
    tiles: Tensor = torch.ops.openwork.pack_tiles(x) if traced else pack_rows(x)
    return tiles


def unpack_tiles(tiles: Tensor, batch: int) -> Tensor:
    """The first `batch` samples of tiles [ceil(batch / 64), features, 64] as [batch, features]."""
    check_tiles(tiles, batch)
    if not is_native(tiles):
        return reference.unpack_tiles(tiles, batch)
    x: Tensor = torch.ops.openwork.unpack_tiles(tiles, batch)
    return x


def sparse_linear_tiles(
    tiles: Tensor,
    values: Tensor,
    prepared: Prepared,
    bias: Tensor | None = None,
    activation: str = "none",
    batch: int | None = None,
) -> Tensor:
    """`linear.sparse_linear` from tiles [count, inputs, 64] to tiles [count, outputs, 64], or to [batch, outputs] if
    `batch` says how many samples they hold.
    """
    check_tiles(tiles, batch)
    outputs, inputs = prepared.shape
    linear.check_linear(tiles[:0, :, 0], inputs, outputs, bias, activation)
    linear.check_values(values, prepared)
    if not is_native(tiles, values, bias):
        x = tiles.transpose(1, 2)
        y = reference.sparse_linear(x, values, prepared.positions, prepared.shape, bias, activation)
        y = y.transpose(1, 2).contiguous()
        return y if batch is None else reference.unpack_tiles(y, batch)
    return linear.differentiable(tiles, values, prepared, bias, activation, batch)


def check_tiles(tiles: Tensor, batch: int | None) -> None:
    """Raise ValueError unless these are tiles, and so many as `batch` samples need."""
    if tiles.dim() != 3 or tiles.shape[2] != TILE_WIDTH:
        raise ValueError(
            f"tiles must be [count, features, {TILE_WIDTH}], found {list(tiles.shape)}: use pack_tiles."
        )
    if batch is not None and not 0 <= tiles.shape[0] * TILE_WIDTH - batch < TILE_WIDTH:
        raise ValueError(f"{batch} samples need {-(-batch // TILE_WIDTH)} tiles, found {tiles.shape[0]}.")


def pack_rows(x: Tensor) -> Tensor:
    """`pack_tiles` of float32 on the CPU, without a gradient."""
    batch, features = x.shape
    x, tiles = x.contiguous(), _packed(x)
    native.kernels().pack_tiles(x.data_ptr(), batch, features, tiles.data_ptr(), native.threads(x.numel()))
    return tiles


def _packed(x: Tensor) -> Tensor:
    return x.new_empty((x.shape[0] + TILE_WIDTH - 1) // TILE_WIDTH, x.shape[1], TILE_WIDTH)


def unpack_rows(tiles: Tensor, batch: int) -> Tensor:
    """`unpack_tiles` of float32 on the CPU, without a gradient."""
    tiles, x = laid_out(tiles), tiles.new_empty(batch, tiles.shape[1])
    native.kernels().unpack_tiles(
        tiles.data_ptr(), batch, tiles.shape[1], x.data_ptr(), native.threads(x.numel())
    )
    return x


def _save_batch(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.batch = inputs[0].shape[0]


def _pack_backward(ctx: Any, dtiles: Tensor) -> Tensor:
    dx: Tensor = torch.ops.openwork.unpack_tiles(dtiles, ctx.batch)
    return dx


def _unpack_backward(ctx: Any, dx: Tensor) -> tuple[Tensor, None]:
    return torch.ops.openwork.pack_tiles(dx), None


def _unpack_fake(tiles: Tensor, batch: int) -> Tensor:
    return tiles.new_empty(batch, tiles.shape[1])


_library.impl("pack_tiles", pack_rows, "CPU")
_library.impl("unpack_tiles", unpack_rows, "CPU")
torch.library.register_fake("openwork::pack_tiles", _packed, lib=_library)
torch.library.register_fake("openwork::unpack_tiles", _unpack_fake, lib=_library)
torch.library.register_autograd(
    "openwork::pack_tiles", _pack_backward, setup_context=_save_batch, lib=_library
)
torch.library.register_autograd("openwork::unpack_tiles", _unpack_backward, lib=_library)
