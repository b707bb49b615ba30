"""Unstructured rows four at a time: columns that several of the four keep are loaded once for all of them.

Nothing is stored or multiplied that was not kept. Pays where rows often agree by chance: around half density.
"""

from __future__ import annotations

import torch
from torch import Tensor

from openwork.kernels import native
from openwork.kernels.groups import Groups, checked_values, entries, padded, parts, plain, starts
from openwork.kernels.index import FIRST_LEVEL_CACHE, TILE_WIDTH

HEIGHT = 4
PATTERNS = 2**HEIGHT - 1
"""Rows of a group, and their non-empty sets (csrc/kernels/shared_columns.cpp)."""

BLOCK = FIRST_LEVEL_CACHE // (TILE_WIDTH * 4)
"""Columns in a block: a tile of activations stays in the first-level cache."""


def shared_columns(crow: Tensor, col: Tensor, values: Tensor, shape: tuple[int, int]) -> Groups:
    """Hold a CSR matrix in groups of four rows; later changes of `values` are not seen.

    Args:
        crow: int32 [rows + 1].
        col: int32 [kept].
        values: float32 [kept].
        shape: (rows, columns).

    Raises:
        TypeError: the values are not float32 on the CPU.
        ValueError: not a valid topology.
    """
    values = checked_values(crow, col, values, shape)
    if not native.enabled():
        return Groups("shared_columns", shape, HEIGHT, [], 1, plain(crow, col, values, shape))
    all_of = entries(crow, col, shape, HEIGHT)
    blocks = max(1, -(-shape[1] // BLOCK))
    place = all_of.column // BLOCK * all_of.groups + all_of.group
    order = (place * PATTERNS + all_of.pattern - 1).argsort(stable=True)
    size = all_of.of.bincount(minlength=order.numel())
    begin = torch.empty_like(order)  # of the weights of each entry
    begin[order] = size[order].cumsum(0) - size[order]
    weight = torch.empty_like(values)
    weight[begin[all_of.of] + all_of.before()] = values
    work = 2 * HEIGHT + torch.bincount(all_of.group[all_of.of], minlength=all_of.groups)
    arrays = [
        parts(work, HEIGHT, shape[0], col.numel()),
        padded(all_of.column[order].int()),
        padded(weight),
        starts(place * PATTERNS + all_of.pattern - 1, blocks * all_of.groups * PATTERNS),
        starts(place[all_of.of], blocks * all_of.groups),
    ]
    return Groups("shared_columns", shape, HEIGHT, [], blocks, arrays)
