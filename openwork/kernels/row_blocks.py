"""Blocks of rows that share one list of columns: an activation is loaded once and feeds all rows of a block.

A column that only some rows of a block keep is stored for all of them, with weight zero for the others: those
zeros are multiplied too, so NaN or infinity in an input reaches every row of a block that has its column.
"""

from __future__ import annotations

import torch
from torch import Tensor

from openwork.kernels import inference, native
from openwork.kernels.groups import Groups, checked_values, entries, padded, parts, plain, starts
from openwork.kernels.index import FIRST_LEVEL_CACHE, TILE_WIDTH
from openwork.kernels.topology import row_of

HEIGHTS = (16, 8, 4, 2)
"""Rows that may share a list (csrc/kernels/row_blocks.cpp)."""

FEW = 12
"""Samples below which blocks of 16 are computed without tiles, if their columns are in one piece."""


def row_blocks(
    crow: Tensor,
    col: Tensor,
    values: Tensor,
    shape: tuple[int, int],
    height: int,
    batch: int = 64,
    dtype: torch.dtype = torch.float32,
) -> Groups:
    """Hold a CSR matrix in blocks of `height` rows; later changes of `values` are not seen.

    Args:
        crow: int32 [rows + 1].
        col: int32 [kept].
        values: float32 [kept].
        shape: (rows, columns); rows beyond the last whole block make a smaller one.
        height: one of `HEIGHTS`.
        batch: samples that calls will have, about; any other number works too.
        dtype: what to store weights as: float32; or, with blocks of 16 rows and for batches below `FEW`, bfloat16 or int8
            with a scale for each row (`inference.rounded`). With more samples it is not the bytes that take the time.

    Raises:
        TypeError: the values are not float32 on the CPU, or weights cannot be stored as `dtype`.
        ValueError: not a valid topology, or another height.
    """
    if height not in HEIGHTS:
        raise ValueError(f"blocks have {', '.join(map(str, sorted(HEIGHTS)))} rows, not {height}.")
    values = checked_values(crow, col, values, shape)
    if dtype not in inference.WEIGHT_DTYPES:
        raise TypeError(f"Weights can be stored as float32, bfloat16 or int8, not {dtype}.")
    if dtype != torch.float32 and (height != HEIGHTS[0] or batch >= FEW):
        raise ValueError(
            f"{dtype} weights are for blocks of {HEIGHTS[0]} rows and batches below {FEW}, "
            f"not for {height} rows and {batch} samples."
        )
    stored, scales = inference.rounded(values, crow, dtype)
    settings = [height, inference.WEIGHT_DTYPES.index(dtype)]
    if not native.enabled():
        wide = stored.float() if scales is None else stored * scales[row_of(crow, col)]
        return Groups("row_blocks", shape, height, settings, 1, plain(crow, col, wide, shape))
    all_of = entries(crow, col, shape, height)
    weight = stored.new_zeros(all_of.column.numel(), height).index_put_((all_of.of, all_of.place), stored)
    density = all_of.column.numel() / max(1, all_of.groups * shape[1])
    size = block_columns(shape[1], density, height, batch)
    blocks = max(1, -(-shape[1] // size))
    key = all_of.column // size * all_of.groups + all_of.group
    order = key.argsort(stable=True)
    work = 2 + torch.bincount(all_of.group, minlength=all_of.groups)
    arrays = [
        parts(work, height, shape[0], col.numel()),
        padded(all_of.column[order].int()),
        padded(weight[order]),
        starts(key, blocks * all_of.groups),
        values.new_zeros(0) if scales is None else scales,
    ]
    return Groups("row_blocks", shape, height, settings, blocks, arrays)


def block_columns(columns: int, density: float, height: int, batch: int) -> int:
    """Columns in a block; any choice is right.

    From four rows on, multiply-adds are the limit and activations may come from the second-level cache, so
    blocks only keep a tile in there. Two rows want theirs in the first, as far as a group still has some 64
    entries in a block: reading its outputs again and again costs too. A few samples are computed without
    tiles, in one block.
    """
    if batch < FEW:
        return max(1, columns)
    first_level = FIRST_LEVEL_CACHE // (TILE_WIDTH * 4)
    second_level = 8 * first_level
    if height > 2:
        return second_level
    return round(min(second_level, max(first_level, 64 / max(density, 1e-9))))
