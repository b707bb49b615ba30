"""Blocks of 4 x 4 and multiples of it (block compressed rows): for fewer than 12 samples.

For larger batches blocks are held as :mod:`row blocks <openwork.layouts.row_blocks>`, which they are as well.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from openwork.kernels import squares as kernel
from openwork.kernels.row_blocks import FEW
from openwork.layouts.arranged import Arranged
from openwork.layouts.csr import CSR
from openwork.layouts.layout import layout
from openwork.layouts.row_blocks import DENSEST, FILL


@layout
class Squares(Arranged):
    """Squares of 4 rows and 4 columns, aligned to multiples of four.

    Suits topologies whose squares are full or absent, at least nine in ten of what is stored being kept connections. A
    connection missing in a square is stored as a zero that is multiplied, so NaN or infinity in an input reaches all outputs of
    the squares that have it.
    """

    name: ClassVar[str] = "blocks 4x4"

    arrange = staticmethod(kernel.square_rows)

    @classmethod
    def unsuited(cls, topology: CSR, values: Tensor, batch: int) -> str | None:
        if wrong := cls.unsuited_to(values):
            return wrong
        if batch >= FEW:
            return f"it is for fewer than {FEW} samples: row blocks serve {batch}"
        if not topology.kept:
            return "there are no connections"
        if topology.density > DENSEST:
            return f"it keeps {topology.density:.2f} of its connections, where dense kernels are as fast"
        if fill(topology) < FILL:
            return f"its connections do not come in blocks of {kernel.SIDE} x {kernel.SIDE}"
        return None


def fill(topology: CSR) -> float:
    """Kept connections as a fraction of the weights that their squares hold."""
    # A row of a band whose rows differ in length cannot fill its squares: most topologies need no closer look.
    lengths = topology.fan_in
    bands = -(-lengths.numel() // kernel.SIDE)
    padded = lengths.new_zeros(bands * kernel.SIDE)
    padded[: lengths.numel()] = lengths
    at_least = int(padded.view(bands, kernel.SIDE).amax(1).sum()) * kernel.SIDE
    if topology.kept < FILL * at_least:
        return topology.kept / at_least
    squares, _ = kernel.squares_of(topology.crow, topology.col, topology.shape[1])
    return topology.kept / max(1, squares.numel() * kernel.SIDE**2)


@layout
class BFloat16Squares(Squares):
    """The same with weights rounded to bfloat16."""

    name: ClassVar[str] = "blocks 4x4 bf16"
    weight_dtype: ClassVar[torch.dtype] = torch.bfloat16


@layout
class Int8Squares(Squares):
    """The same with weights rounded to int8, and a scale for each row."""

    name: ClassVar[str] = "blocks 4x4 int8"
    weight_dtype: ClassVar[torch.dtype] = torch.int8
