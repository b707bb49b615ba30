"""The order in which convolutions with a sparse weight are computed, made once from its topology."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from openwork.kernels import native
from openwork.kernels.index import FIRST_LEVEL_CACHE, Nonzeros, part_count, walk_bytes
from openwork.kernels.planes import TILES, VECTOR, Convolution
from openwork.kernels.topology import validate


@dataclass(eq=False)
class PreparedConv(Nonzeros):
    """A validated sparse weight and what the kernels need to compute convolutions with it.

    Attributes:
        crow: int32 [out + 1].
        col: int32 [kept], ascending in each row: (input channel, row tap, column tap) as one number.
        convolution: the shape, stride and padding.
        walk: the order of computing, see `index.Prepared`.
    """

    crow: Tensor
    col: Tensor
    convolution: Convolution
    walk: list[Tensor] = field(repr=False)
    _transposed: list[Tensor] | None = field(default=None, repr=False)
    _positions: Tensor | None = field(default=None, repr=False)

    @property
    def columns(self) -> int:
        """Taps of all inputs."""
        return self.convolution.matrix[1]

    @property
    def transposed(self) -> list[Tensor]:
        """The walk of the matrix from outputs to inputs, made on first use.

        Its rows are (input channel, row phase, column phase), its columns (output channel, row tap, column
        tap): an input pixel meets only the taps of its phase. Its fifth tensor has for each of its nonzeros
        the position in CSR order.
        """
        if self._transposed is None:
            c = self.convolution
            tap, channel = self.col % c.taps, self.col // c.taps
            row, column = tap // c.kernel[1], tap % c.kernel[1]
            line = (channel * c.stride[0] + row % c.stride[0]) * c.stride[1] + column % c.stride[1]
            lines = c.inputs * c.stride[0] * c.stride[1]
            crow, outputs, order = torch.ops.openwork.transpose(self.crow, line.to(torch.int32), lines)
            col = outputs * c.taps + tap[order]
            parts = self.walk[2].shape[0]
            self._transposed = [*_walk(crow, col.to(torch.int32), lines, c.outputs, c, parts), order]
        return self._transposed


def prepare_conv(
    crow: Tensor, col: Tensor, convolution: Convolution, name: str = "the sparse weight"
) -> PreparedConv:
    """Validate a CSR topology of `weight.flatten(1)` and prepare it for the kernels.

    Raises:
        TypeError: wrong dtype.
        ValueError: not a valid CSR topology of `convolution.matrix`, or too large for 32-bit indices.
    """
    validate(crow, col, convolution.matrix, name)
    crow, col = crow.contiguous(), col.contiguous()
    c, parts = convolution, part_count(col.numel())
    walk = _walk(crow, col, c.outputs, c.inputs, c, parts)
    return PreparedConv(crow, col, convolution, walk)


def _walk(
    crow: Tensor, col: Tensor, rows: int, channels: int, convolution: Convolution, parts: int
) -> list[Tensor]:
    if not (native.enabled() and crow.device.type == "cpu"):
        nothing = crow.new_zeros(0)
        return [col, nothing, nothing, nothing]
    columns = channels * convolution.taps
    block = _block_columns(rows, columns, col.numel(), convolution)
    return [col, *torch.ops.openwork.plan_runs(crow, col, rows, columns, block, parts)]


def _block_columns(rows: int, columns: int, kept: int, convolution: Convolution) -> int:
    """As many channels to a block as keep the inputs of a tile, halo included, in the first-level cache."""
    lines = convolution.kernel[0] * (TILES[0] + (convolution.kernel[1] - 1))
    block = max(1, FIRST_LEVEL_CACHE // (4 * VECTOR * lines)) * convolution.taps
    # All columns if runs would be too short, see index.block_columns.
    return max(1, columns) if kept * block < 4 * rows * columns else block


def conv_index_bytes(convolution: Convolution, kept: int, transposed: bool) -> int:
    """Bytes of a `PreparedConv`, with the walk of the transposed matrix or without."""
    (rows, columns), parts = convolution.matrix, part_count(kept)
    held = 4 * (rows + 1) + 4 * kept + transposed * 8 * kept
    if native.enabled():
        held += walk_bytes(rows, columns, _block_columns(rows, columns, kept, convolution), parts)
        if transposed:
            rows = convolution.inputs * convolution.stride[0] * convolution.stride[1]
            columns = convolution.outputs * convolution.taps
            held += walk_bytes(rows, columns, _block_columns(rows, columns, kept, convolution), parts)
    return held
