"""Linear layers for one sample: rows side by side in slices of 16 (sliced ELL).

With one sample each nonzero needs one input from a place of its own, and a vector of products must hold
different nonzeros. Taken from one row, they have to be added up across the vector when the row ends. Taken
from 16 rows, each lane keeps the sum of its own row. Rows are sorted by length, so that slices need little
padding: none at all with constant fan-in, where this is the condensed layout of SRigL (Lasby et al., ICLR
2024, arXiv:2305.02299).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from openwork.kernels import inference
from openwork.kernels.pages import in_large_pages

SLICE_ROWS = 16
"""Rows in a slice (csrc/kernels/slices.cpp)."""


@inference.operator
@dataclass(frozen=True, eq=False)
class Slices(inference.Arrangement):
    """A frozen sparse matrix in slices of 16 rows; made by `slice_rows`.

    Attributes:
        shape: (outputs, inputs).
        columns: uint16, or int32 for more than 65535 inputs, [entries, 16]; `inputs` where a row has ended.
        values: float32, bfloat16 or int8 [entries, 16]; zero where a row has ended.
        ends: int64 [slices + 1]: slice i has the entries from ends[i] to ends[i + 1].
        rows: int32 [slices * 16], the row in each lane, longest rows first; -1 for none.
        scales: float32 [outputs], of int8 weights.
    """

    operator: ClassVar[str] = "sliced_linear"

    shape: tuple[int, int]
    columns: Tensor = field(repr=False)
    values: Tensor = field(repr=False)
    ends: Tensor = field(repr=False)
    rows: Tensor = field(repr=False)
    scales: Tensor | None = field(default=None, repr=False)

    def arguments(self) -> tuple[int, ...]:
        """Addresses, slices, types."""
        return (
            self.columns.data_ptr(), self.values.data_ptr(), self.ends.data_ptr(), self.rows.data_ptr(),
            self.ends.numel() - 1, self.columns.dtype == torch.int32, inference.WEIGHT_DTYPES.index(self.values.dtype),
            inference.address(self.scales),
        )  # fmt: skip

    def work(self, samples: int) -> int:
        """A gathered input for every entry."""
        return self.values.numel() * samples * inference.NONZERO_WORK

    def twin(self, x: Tensor, bias: Tensor | None, activation: str) -> Tensor:
        """In plain PyTorch."""
        owner = torch.where(self.rows < 0, self.shape[0], self.rows).long().view(-1, SLICE_ROWS)
        owner = owner.repeat_interleave(self.ends.diff(), 0)
        return inference.gathered_linear(
            x, self.columns, self.values, owner, bias, self.shape[0], activation, self.scales
        )


def padded_entries(crow: Tensor) -> int:
    """Nonzeros that slices of a matrix with row pointers `crow` would hold, padding included."""
    lengths = crow.diff().sort(descending=True).values
    return int(lengths[::SLICE_ROWS].sum()) * SLICE_ROWS


def slice_rows(
    values: Tensor, crow: Tensor, col: Tensor, shape: tuple[int, int], dtype: torch.dtype = torch.float32
) -> Slices:
    """Lay out `values` [kept] (float32, CPU) in slices. Later changes of `values` are not seen.

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
    lengths = crow.diff().long()
    order = lengths.argsort(descending=True, stable=True)
    slices = -(-outputs // SLICE_ROWS)
    rows = torch.full((slices * SLICE_ROWS,), -1, dtype=torch.int32)
    rows[:outputs] = order
    ends = torch.zeros(slices + 1, dtype=torch.int64)
    ends[1:] = lengths[order][::SLICE_ROWS].cumsum(0)

    lane = torch.empty_like(order)
    lane[order] = torch.arange(outputs)
    lane = lane.repeat_interleave(lengths)
    rank = torch.arange(col.numel()) - crow[:-1].long().repeat_interleave(lengths)
    place = (ends[lane // SLICE_ROWS] + rank) * SLICE_ROWS + lane % SLICE_ROWS
    entries = int(ends[-1])
    columns = torch.full((entries * SLICE_ROWS,), inputs, dtype=torch.int32)
    columns[place] = col
    stored, scales = inference.rounded(values, crow, dtype)
    weights = torch.zeros(entries * SLICE_ROWS, dtype=dtype)
    weights[place] = stored
    return Slices(
        shape,
        in_large_pages(columns.to(inference.column_dtype(inputs)).view(-1, SLICE_ROWS)),
        in_large_pages(weights.view(-1, SLICE_ROWS)),
        ends,
        rows,
        scales,
    )
