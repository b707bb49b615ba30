"""Row blocks: 2, 4, 8 or 16 consecutive outputs share one list of inputs.

The least restrictive structure that computes a kept weight as fast as a dense one: an activation is loaded
once for all outputs of a block. Trained in with ``Block(4, 1)``, or found where pruning left it.

Paper: Elsen, Dukhan, Gale, Simonyan, "Fast Sparse ConvNets", CVPR 2020.
"""

from __future__ import annotations

from typing import ClassVar, Self

import torch
from torch import Tensor

from openwork.kernels.row_blocks import FEW, HEIGHTS, row_blocks
from openwork.layouts.csr import CSR
from openwork.layouts.held import Held
from openwork.layouts.layout import layout

FILL = 0.9
"""Fraction of the stored weights that must be kept connections; the others are zeros to complete a block."""

DENSEST = 0.9
"""Density from which on a dense kernel cannot be beaten by more than noise."""

SAMPLE = 16
"""Blocks looked at before all are."""


@layout
class RowBlocks(Held):
    """Blocks of consecutive rows, each with one list of columns.

    Suits topologies whose rows agree in groups of 2, 4, 8 or 16; the highest that fits is taken. For fewer
    than 12 samples the blocks must have 16 rows: their weights are then whole vectors.

    A connection missing in a block is stored as a zero that is multiplied, so NaN or infinity in an input
    reaches all outputs of the blocks that have it.
    """

    name: ClassVar[str] = "row blocks"

    @classmethod
    def unsuited(cls, topology: CSR, values: Tensor, batch: int) -> str | None:
        if wrong := cls.unsuited_to(values):
            return wrong
        if not topology.kept:
            return "there are no connections"
        if topology.density > DENSEST:
            return f"it keeps {topology.density:.2f} of its connections, where dense kernels are as fast"
        found = height(topology, HEIGHTS[:1] if batch < FEW else HEIGHTS)
        if found is None:
            wanted = "16 rows" if batch < FEW else "2 rows or more"
            return f"its rows do not share their columns in blocks of {wanted}"
        return None

    @classmethod
    def build(cls, topology: CSR, values: Tensor, batch: int) -> Self:
        found = height(topology)
        if found is None:
            raise ValueError(
                f"the rows of this {topology.shape[0]} x {topology.shape[1]} weight do not share their "
                "columns in blocks: hold it in another layout, or prune it with the pattern Block(4, 1)"
            )
        crow, col, shape = topology.crow, topology.col, topology.shape
        return cls(row_blocks(crow, col, values.float(), shape, found, batch, cls.weight_dtype))


@layout
class BFloat16RowBlocks(RowBlocks):
    """Blocks of 16 rows for fewer than 12 samples, weights rounded to bfloat16."""

    name: ClassVar[str] = "row blocks bf16"
    weight_dtype: ClassVar[torch.dtype] = torch.bfloat16

    @classmethod
    def unsuited(cls, topology: CSR, values: Tensor, batch: int) -> str | None:
        if batch >= FEW:
            return f"it is for fewer than {FEW} samples: with {batch} it is not the bytes that take the time"
        return super().unsuited(topology, values, batch)


@layout
class Int8RowBlocks(BFloat16RowBlocks):
    """Blocks of 16 rows for fewer than 12 samples, weights rounded to int8 with a scale for each row."""

    name: ClassVar[str] = "row blocks int8"
    weight_dtype: ClassVar[torch.dtype] = torch.int8


def height(topology: CSR, heights: tuple[int, ...] = HEIGHTS) -> int | None:
    """The highest blocks that ``topology`` has, or None.

    Blocks of a height fit where at least nine in ten of the weights they hold are kept connections. Costs a
    look at the row lengths and at some of the blocks, and only where those agree at all of them.
    """
    return next((high for high in sorted(heights, reverse=True) if _fits(topology, high)), None)


def _fits(topology: CSR, height: int) -> bool:
    rows = topology.shape[0]
    if rows < height:
        return False
    groups = -(-rows // height)
    lengths = torch.zeros(groups * height, dtype=torch.int64)
    lengths[:rows] = topology.fan_in
    at_least = int(lengths.view(groups, height).amax(1).sum()) * height  # a list is no shorter than its rows
    if topology.kept < FILL * at_least:
        return False
    if groups > SAMPLE:
        some = torch.linspace(0, groups - 1, SAMPLE).long()
        # a small sample errs; what it lets through is counted
        if _fill(topology, height, some) < FILL - 0.1:
            return False
    return _fill(topology, height, torch.arange(groups)) >= FILL


def _fill(topology: CSR, height: int, groups: Tensor) -> float:
    """Kept connections in these blocks, as a fraction of the weights that the blocks hold."""
    rows = (groups[:, None] * height + torch.arange(height)).flatten()
    rows = rows[rows < topology.shape[0]]
    length = topology.fan_in[rows]
    group = (rows // height).repeat_interleave(length)
    within = torch.arange(group.numel()) - (length.cumsum(0) - length).repeat_interleave(length)
    column = topology.col[topology.crow[rows].long().repeat_interleave(length) + within]
    listed: int = torch.unique(group * topology.shape[1] + column).numel()
    return float(group.numel() / max(1, listed * height))
