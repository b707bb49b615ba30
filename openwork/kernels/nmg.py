"""n:m:g: of the m rows of a group every column has n, and all patterns of rows are about equally frequent.

The kernel takes one column of every pattern, step by step, without asking which: straight code. A pattern
with fewer columns than another in a block is filled up by weights of zero times an input of zero, so no input
is touched that is not connected.

Paper: Ivanov, Dryden, Ben-Nun, Ashkboos, Hoefler, "STen: Productive and Efficient Sparsity in PyTorch", 2023.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from math import comb

import torch
from torch import Tensor

from openwork.kernels import native
from openwork.kernels.groups import Entries, Groups, checked_values, entries, padded, parts, plain, starts
from openwork.kernels.index import FIRST_LEVEL_CACHE, TILE_WIDTH

RATIOS = ((2, 4), (2, 8))
"""(n, m) that have a kernel (csrc/kernels/nmg.cpp). With n = 1 an activation serves one row, as in CSR."""

WELL_FILLED = 0.97
"""Fraction of real entries at which a smaller block of columns is preferred to a better filled one."""


def patterns(n: int, m: int) -> list[int]:
    """The sets of n of m rows as numbers (bit r: row r), ascending."""
    return sorted(sum(1 << row for row in rows) for rows in combinations(range(m), n))


@dataclass(frozen=True, eq=False)
class Steps:
    """Entries in steps of one column of every pattern.

    Attributes:
        blocks: blocks the columns are cut into.
        slot: int64 [entries], place among all slots, `step * patterns + pattern`.
        first: int64 [blocks * groups + 1], first step of each [block][group].
        filled: fraction of the slots that hold an entry.
    """

    blocks: int
    slot: Tensor
    first: Tensor
    filled: float


def steps(all_of: Entries, columns: int, n: int, m: int) -> Steps:
    """Arrange entries whose patterns are `patterns(n, m)`, in blocks as small as fills them well."""
    most = FIRST_LEVEL_CACHE // (TILE_WIDTH * 4 * comb(m, n))
    smallest = comb(m, n) * 2 ** max(0, most.bit_length() - 1)  # g is mostly a power of two as well
    tried = []
    for size in (smallest, 2 * smallest, 4 * smallest, 8 * smallest):
        tried.append(_arranged(all_of, columns, size, torch.tensor(patterns(n, m))))
        if tried[-1].filled >= WELL_FILLED or size >= columns:
            break
    return next((one for one in tried if one.filled >= WELL_FILLED), max(tried, key=lambda one: one.filled))


def _arranged(all_of: Entries, columns: int, size: int, sets: Tensor) -> Steps:
    blocks = max(1, -(-columns // size))
    place = all_of.column // size * all_of.groups + all_of.group
    kind = torch.searchsorted(sets, all_of.pattern)
    key = place * len(sets) + kind
    begin = starts(key, blocks * all_of.groups * len(sets)).long()
    longest = begin.diff().view(-1, len(sets)).amax(1)
    first = torch.cat([longest.new_zeros(1), longest.cumsum(0)])
    order = key.argsort(stable=True)
    rank = torch.empty_like(order)
    rank[order] = torch.arange(order.numel())
    slot = (first[place] + rank - begin[key]) * len(sets) + kind
    return Steps(blocks, slot, first, order.numel() / max(1, int(first[-1]) * len(sets)))


def irregular(all_of: Entries, n: int) -> int | None:
    """The first entry whose column has another number of rows than n, or None."""
    wrong = (all_of.of.bincount(minlength=all_of.column.numel()) != n).nonzero()
    return int(wrong[0]) if wrong.numel() else None


def nmg(crow: Tensor, col: Tensor, values: Tensor, shape: tuple[int, int], n: int, m: int) -> Groups:
    """Hold a CSR matrix in groups of m rows, of which each column has n or none.

    Args:
        crow: int32 [rows + 1].
        col: int32 [kept].
        values: float32 [kept]; later changes are not seen.
        shape: (rows, columns).
        n: kept of
        m: rows. (n, m) is one of `RATIOS`.

    Raises:
        TypeError: the values are not float32 on the CPU.
        ValueError: not a valid topology, another ratio, or a column that has another number of rows.
    """
    if (n, m) not in RATIOS:
        raise ValueError(f"{n} of {m} rows have no kernel; {', '.join(f'{a} of {b}' for a, b in RATIOS)} do.")
    values = checked_values(crow, col, values, shape)
    all_of = entries(crow, col, shape, m)
    wrong = irregular(all_of, n)
    if wrong is not None:
        row = int(all_of.group[wrong]) * m
        raise ValueError(
            f"every column must have {n} of the {m} rows of a group or none; column "
            f"{int(all_of.column[wrong])} has {int((all_of.of == wrong).sum())} of the rows "
            f"{row} ... {row + m - 1}."
        )
    if not native.enabled():
        return Groups("nmg", shape, m, [m], 1, plain(crow, col, values, shape))
    arranged, count = steps(all_of, shape[1], n, m), comb(m, n)
    slots = int(arranged.first[-1]) * count
    column = torch.full((slots,), shape[1], dtype=torch.int32)  # the input that is always zero
    column[arranged.slot] = all_of.column.int()
    weight = values.new_zeros(slots, n)
    weight[arranged.slot[all_of.of], all_of.before()] = values
    work = 2 + arranged.first.diff().view(arranged.blocks, all_of.groups).sum(0)
    arrays = [parts(work, m, shape[0], col.numel()), padded(column), padded(weight), arranged.first.int()]
    return Groups("nmg", shape, m, [m], arranged.blocks, arrays)
