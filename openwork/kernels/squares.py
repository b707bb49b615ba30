"""Linear layers for few samples whose weights come in blocks: squares of 4 rows and 4 columns, of which larger blocks are made.

A square is a vector of weights and meets four neighbouring inputs, repeated: an index, a load of weights and a load of
inputs serve sixteen of them. With more samples `row_blocks` do the same work in fewer steps.

A position that a square has and the topology has not is stored as a zero and multiplied, so NaN or infinity in an input
reaches every row of the squares that have its column.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from openwork.kernels import inference, linear, native
from openwork.kernels.pages import in_large_pages
from openwork.kernels.topology import row_of

SIDE = 4
"""Rows and columns of a square (csrc/kernels/squares.cpp)."""

_library = torch.library.Library("openwork", "FRAGMENT")
_library.define(
    "squares_linear(Tensor x, Tensor columns, Tensor values, Tensor ends, Tensor? scales, Tensor? bias, SymInt outputs,"
    " str activation) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)


@dataclass(frozen=True, eq=False)
class Squares(inference.Arrangement):
    """A frozen sparse matrix in squares; made by `square_rows`.

    Attributes:
        shape: (outputs, inputs).
        columns: uint16, or int32 for more than 262140 inputs, [squares]: the first column, divided by four.
        values: float32, bfloat16 or int8 [squares, 16], row by row.
        ends: int64 [bands + 1]: the four rows of band i have the squares from ends[i] to ends[i + 1].
        scales: float32 [outputs], of int8 weights.
    """

    shape: tuple[int, int]
    columns: Tensor = field(repr=False)
    values: Tensor = field(repr=False)
    ends: Tensor = field(repr=False)
    scales: Tensor | None = field(default=None, repr=False)


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


def squares_linear(
    x: Tensor, squares: Squares, bias: Tensor | None = None, activation: str = "none"
) -> Tensor:
    """`activation(x W^T + bias)`, float32 on the CPU, without gradients; the same bits for every number of threads and
    samples.

    Args:
        x: [..., inputs].
        squares: from `square_rows`.
        bias: [outputs].
        activation: one of `linear.ACTIVATIONS`.

    Returns:
        [..., outputs].
    """
    outputs = squares.shape[0]
    samples = inference.check_inputs(x, squares.shape, bias, activation)
    compute = torch.ops.openwork.squares_linear if linear.is_traced(samples, bias) else _squares_linear
    y: Tensor = compute(
        samples, squares.columns, squares.values, squares.ends, squares.scales, bias, outputs, activation
    )
    return y if x.dim() == 2 else y.view(*x.shape[:-1], outputs)


def _squares_linear(
    x: Tensor,
    columns: Tensor,
    values: Tensor,
    ends: Tensor,
    scales: Tensor | None,
    bias: Tensor | None,
    outputs: int,
    activation: str,
) -> Tensor:
    if not native.enabled():
        band = torch.arange(ends.numel() - 1).repeat_interleave(ends.diff())
        place = torch.arange(SIDE)
        rows = (band[:, None] * SIDE + place)[:, :, None].expand(-1, -1, SIDE)
        inside = (columns.long()[:, None] * SIDE + place)[:, None, :].expand(-1, SIDE, -1)
        rows, inside = rows.clamp(max=outputs), inside.clamp(max=x.shape[1])
        return inference.gathered_linear(x, inside, values, rows, bias, outputs, activation, scales)
    x, bias = x.contiguous(), None if bias is None else bias.contiguous()
    y = x.new_empty(x.shape[0], outputs)
    native.kernels().squares_linear(
        x.data_ptr(), y.data_ptr(), x.shape[0], x.shape[1], outputs, columns.data_ptr(), values.data_ptr(),
        ends.data_ptr(), columns.dtype == torch.int32, inference.WEIGHT_DTYPES.index(values.dtype),
        0 if scales is None else scales.data_ptr(), 0 if bias is None else bias.data_ptr(),
        linear.ACTIVATIONS.index(activation), native.threads((4 * values.numel() + outputs) * x.shape[0]),
    )  # fmt: skip
    return y


_library.impl("squares_linear", _squares_linear, "CPU")
torch.library.register_fake(
    "openwork::squares_linear",
    lambda x, columns, values, ends, scales, bias, outputs, activation: x.new_empty(x.shape[0], outputs),
    lib=_library,
)
