"""Linear layers for a few samples at moderate sparsity: one bit for every position, kept values packed.

Between half and four fifths zeros, it costs more to find the inputs of the nonzeros than to multiply all of
them: inputs are read in order, and the packed weights are spread over the lanes that the bits name. The time
does not depend on the sparsity; the bytes read do, and weights that come from memory are read at its speed.
Rows go in groups of four, whose masks for 16 columns are one word.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from openwork.kernels import inference
from openwork.kernels.pages import in_large_pages
from openwork.kernels.topology import row_of

GROUP_ROWS = 4
"""Rows in a group (csrc/kernels/bitmasked.cpp)."""

MASK_BITS = 16
"""Columns in a block (csrc/expand.h)."""

VALUE_PADDING = 16
"""Values behind the last that may be read."""

POSITION_WORK = 4
"""Multiply-adds of a large batch that take about as long as one position (`native.threads`)."""

LARGEST_BATCH = 6
"""Samples computed together with AVX-512 (2 below); larger batches go in pieces."""


@inference.operator
@dataclass(frozen=True, eq=False)
class Bitmasked(inference.Arrangement):
    """A frozen sparse matrix as bits and packed values; made by `bitmask_rows`.

    Attributes:
        shape: (outputs, inputs).
        masks: int64 [groups, blocks]: bit 16 r + c is row r of the group and column c of the block.
        values: float32, bfloat16 or int8 [kept + VALUE_PADDING], in the order of the bits.
        first: int64 [groups + 1], the first value of each group.
        scales: float32 [outputs], of int8 weights.
    """

    operator: ClassVar[str] = "bitmasked_linear"

    shape: tuple[int, int]
    masks: Tensor = field(repr=False)
    values: Tensor = field(repr=False)
    first: Tensor = field(repr=False)
    scales: Tensor | None = field(default=None, repr=False)

    def arguments(self) -> tuple[int, ...]:
        """Addresses and the type of the values."""
        return (
            self.masks.data_ptr(), self.values.data_ptr(), self.first.data_ptr(),
            inference.WEIGHT_DTYPES.index(self.values.dtype), inference.address(self.scales),
        )  # fmt: skip

    def work(self, samples: int) -> int:
        """All positions are multiplied, kept or not."""
        return self.masks.numel() * GROUP_ROWS * MASK_BITS * samples * POSITION_WORK

    def twin(self, x: Tensor, bias: Tensor | None, activation: str) -> Tensor:
        """In plain PyTorch."""
        rows, columns = positions(self.masks)
        values = self.values[: rows.numel()]
        return inference.gathered_linear(
            x, columns, values, rows, bias, self.shape[0], activation, self.scales
        )


def bitmask_rows(
    values: Tensor, crow: Tensor, col: Tensor, shape: tuple[int, int], dtype: torch.dtype = torch.float32
) -> Bitmasked:
    """Lay out `values` [kept] (float32, CPU) behind a bitmask. Later changes of `values` are not seen.

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
    groups, blocks = -(-outputs // GROUP_ROWS), -(-inputs // MASK_BITS)
    row = row_of(crow, col)
    word = row // GROUP_ROWS * blocks + col // MASK_BITS
    bit = row % GROUP_ROWS * MASK_BITS + col % MASK_BITS
    # Every bit is added once, so the sum is their union; the highest is the sign.
    masks = torch.zeros(groups * blocks, dtype=torch.int64).index_add(
        0, word, torch.bitwise_left_shift(1, bit)
    )
    order = (word * (GROUP_ROWS * MASK_BITS) + bit).argsort()
    packed = torch.zeros(col.numel() + VALUE_PADDING, dtype=dtype)
    stored, scales = inference.rounded(values, crow, dtype)
    packed[: col.numel()] = stored[order]
    starts = torch.arange(groups + 1).mul_(GROUP_ROWS).clamp_(max=outputs)
    masks = in_large_pages(masks.view(groups, blocks))
    return Bitmasked(shape, masks, in_large_pages(packed), crow.long()[starts], scales)


def positions(masks: Tensor) -> tuple[Tensor, Tensor]:
    """(row, column) of every bit, int64, in the order of the values."""
    bits = torch.bitwise_right_shift(masks[:, :, None], torch.arange(GROUP_ROWS * MASK_BITS)) & 1
    group, block, bit = bits.nonzero(as_tuple=True)
    return group * GROUP_ROWS + bit // MASK_BITS, block * MASK_BITS + bit % MASK_BITS
