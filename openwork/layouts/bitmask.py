"""Bitmask: one bit a position, for files.

A mask ``[out, in]`` becomes uint8 ``[out, ceil(in / 8)]``; bit ``j`` (value ``1 << j``) of byte ``b`` is
column ``8 * b + j``, and the bits behind the last column are zero. At one bit a position against 16 a kept
column it is smaller than CSR with 16-bit columns while more than 1/16 of the connections is kept.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, UInt8
from torch import Tensor


def pack(mask: Bool[Tensor, "out in"]) -> UInt8[Tensor, "out bytes"]:
    """The bits of ``mask``, on the CPU."""
    if mask.dtype != torch.bool or mask.ndim != 2:
        raise ValueError(f"only a boolean [out, in] has bits to pack, not {mask.dtype} {list(mask.shape)}")
    return torch.from_numpy(np.packbits(mask.cpu().numpy(), axis=1, bitorder="little"))


def unpack(bits: UInt8[Tensor, "out bytes"], columns: int, name: str) -> Bool[Tensor, "out in"]:
    """The mask ``[out, columns]`` that :func:`pack` packed.

    Args:
        bits: uint8 ``[out, ceil(columns / 8)]`` on the CPU.
        columns: number of columns of the mask.
        name: what to call this tensor in an error.

    Raises:
        ValueError: another shape or dtype, or a bit set behind the last column.
    """
    width = -(-columns // 8)
    if bits.dtype != torch.uint8 or bits.ndim != 2 or bits.shape[1] != width:
        raise ValueError(
            f"{name}: {columns} columns are packed as uint8 [out, {width}], found {bits.dtype} "
            f"{list(bits.shape)}"
        )
    mask = torch.from_numpy(np.unpackbits(bits.numpy(), axis=1, bitorder="little").view(np.bool_))
    if bool(mask[:, columns:].any()):
        row = int(mask[:, columns:].any(1).int().argmax())
        raise ValueError(f"{name}: row {row} has a bit set behind its last column, {columns - 1}")
    return mask[:, :columns]
