"""Linear layers for 1 to 16 samples: several nonzeros of a row in one vector.

A nonzero multiplies the inputs of its column, one for each sample, and with few samples these do not fill a
vector. So the vector holds 4, 2 or 1 nonzeros with 4, 8 or 16 samples (on AVX-512), and their weights, loaded
eight at a time, are spread over its lanes. Rows are therefore made of octets, filled up with nonzeros that
point at an input which is always zero. Columns take 16 bits where that is enough.
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

OCTET = 8
"""Nonzeros in an octet (csrc/kernels/small_batch.cpp)."""

LARGEST_BATCH = 16
"""Samples computed together; larger batches go in pieces of this size."""


@inference.operator
@dataclass(frozen=True, eq=False)
class Octets(Listed):
    """A frozen sparse matrix in rows of octets; made by `octet_rows`.

    Results have not the same bits for every batch: the order of additions depends on how many nonzeros share a vector.

    Attributes:
        shape: (outputs, inputs).
        columns: uint16, or int32 for more than 65535 inputs, [octets, 8]; `inputs` where a row has ended.
        values: float32, bfloat16 or int8 [octets, 8]; zero where a row has ended.
        ends: int64 [outputs + 1]: row r has the octets from ends[r] to ends[r + 1].
        scales: float32 [outputs], of int8 weights.
    """

    operator: ClassVar[str] = "small_batch_linear"

    def work(self, samples: int) -> int:
        """What finding the inputs of a nonzero takes; they are neighbours for all samples."""
        return self.values.numel() * inference.NONZERO_WORK

    def twin(self, x: Tensor, bias: Tensor | None, activation: str) -> Tensor:
        """In plain PyTorch."""
        rows = torch.arange(self.shape[0]).repeat_interleave(self.ends.diff() * OCTET)
        return inference.gathered_linear(
            x, self.columns, self.values, rows, bias, self.shape[0], activation, self.scales
        )


def octet_rows(
    values: Tensor, crow: Tensor, col: Tensor, shape: tuple[int, int], dtype: torch.dtype = torch.float32
) -> Octets:
    """Lay out `values` [kept] (float32, CPU) in octets. Later changes of `values` are not seen.

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
    ends = torch.zeros(outputs + 1, dtype=torch.int64)
    ends[1:] = ((crow.diff().long() + OCTET - 1) // OCTET).cumsum(0)
    row = row_of(crow, col)
    place = ends[row] * OCTET + torch.arange(col.numel()) - crow.long()[row]
    size = int(ends[-1]) * OCTET
    columns = torch.full((size,), inputs, dtype=torch.int32)
    columns[place] = col
    stored, scales = inference.rounded(values, crow, dtype)
    weights = torch.zeros(size, dtype=dtype)
    weights[place] = stored
    return Octets(
        shape,
        in_large_pages(columns.to(inference.column_dtype(inputs)).view(-1, OCTET)),
        in_large_pages(weights.view(-1, OCTET)),
        ends,
        scales,
    )
