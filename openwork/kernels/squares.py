"""Linear layers for few samples whose weights come in blocks: squares of 4 rows and 4 columns, of which larger blocks are made.

A square is a vector of weights and meets four neighbouring inputs, repeated: an index, a load of weights and a load of
inputs serve sixteen of them. With more samples `row_blocks` do the same work in fewer steps.

A position that a square has and the topology has not is stored as a zero and multiplied, so NaN or infinity in an input
reaches every row of the squares that have its column.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from openwork.kernels import inference
from openwork.kernels.listed import Listed
from openwork.kernels.pages import in_large_pages
from openwork.kernels.topology import row_of

SIDE = 4
"""Rows and columns of a square (csrc/kernels/squares.cpp)."""


@inference.operator
@dataclass(frozen=True, eq=False)
class Squares(Listed):
    """A frozen sparse matrix in squares; made by `square_rows`. Results have the same bits for every number of samples.

    Attributes:
        shape: (outputs, inputs).
        columns: uint16, or int32 for more than 262140 inputs, [squares]: the first column, divided by four.
        values: float32, bfloat16 or int8 [squares, 16], row by row.
        ends: int64 [bands + 1]: the four rows of band i have the squares from ends[i] to ends[i + 1].
        scales: float32 [outputs], of int8 weights.
    """

    operator: ClassVar[str] = "squares_linear"

    def work(self, samples: int) -> int:
        """Four times that of a large batch, which has registers to keep the weights in."""
        return (4 * self.values.numel() + self.shape[0]) * samples

    def twin(self, x: Tensor, bias: Tensor | None, activation: str) -> Tensor:
        """In plain PyTorch."""
        outputs, inputs = self.shape
        band = torch.arange(self.ends.numel() - 1).repeat_interleave(self.ends.diff())
        place = torch.arange(SIDE)
        rows = (band[:, None] * SIDE + place)[:, :, None].expand(-1, -1, SIDE)
        inside = (self.columns.long()[:, None] * SIDE + place)[:, None, :].expand(-1, SIDE, -1)
        rows, inside = rows.clamp(max=outputs), inside.clamp(max=inputs)
        return inference.gathered_linear(x, inside, self.values, rows, bias, outputs, activation, self.scales)


def squares_of(crow: Tensor, col: Tensor, columns: int) -> tuple[Tensor, Tensor]:
    """The squares of a CSR topology: which there are, as band * bands of columns + band of columns, ascending; and of
    each nonzero its square's place among them.
    """
    across = -(-columns // SIDE)
    key = row_of(crow, col) // SIDE * across + col // SIDE
    listed, of = torch.unique(key, return_inverse=True)
    return listed, of


def square_rows(
    values: Tensor, crow: Tensor, col: Tensor, shape: tuple[int, int], dtype: torch.dtype = torch.float32
) -> Squares:
    """Lay out `values` [kept] (float32, CPU) in squares. Later changes of `values` are not seen.

    Args:
        values: [kept], in CSR order.
        crow: int32 [outputs + 1].
        col: int32 [kept].
        shape: (outputs, inputs).
        dtype: what to store weights as: float32; bfloat16, which rounds them to 8 bits of mantissa; int8, whole numbers
            times a scale for each row (`inference.rounded`).

    Raises:
        ValueError: not a CSR matrix of this shape.
        TypeError: other dtypes or devices.
    """
    inference.check_weights(values, crow, col, shape, dtype)
    outputs, inputs = shape
    bands, across = -(-outputs // SIDE), max(1, -(-inputs // SIDE))
    listed, of = squares_of(crow, col, inputs)
    ends = torch.zeros(bands + 1, dtype=torch.int64)
    ends[1:] = torch.bincount(listed // across, minlength=bands).cumsum(0)
    stored, scales = inference.rounded(values, crow, dtype)
    weights = torch.zeros(listed.numel(), SIDE * SIDE, dtype=dtype)
    weights[of, row_of(crow, col) % SIDE * SIDE + col % SIDE] = stored
    columns = (listed % across).to(inference.column_dtype(across))
    return Squares(shape, in_large_pages(columns), in_large_pages(weights), ends, scales)
