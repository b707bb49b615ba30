"""Linear layers for 1 to 16 samples: several nonzeros of a row in one vector.

A nonzero multiplies the inputs of its column, one for each sample, and with few samples these do not fill a
vector. So the vector holds 4, 2 or 1 nonzeros with 4, 8 or 16 samples (on AVX-512), and their weights, loaded
eight at a time, are spread over its lanes. Rows are therefore made of octets, filled up with nonzeros that
point at an input which is always zero. Columns take 16 bits where that is enough.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from openwork.kernels import inference, linear, native
from openwork.kernels.pages import in_large_pages
from openwork.kernels.topology import row_of

OCTET = 8
"""Nonzeros in an octet (csrc/kernels/small_batch.cpp)."""

LARGEST_BATCH = 16
"""Samples computed together; larger batches go in pieces of this size."""

_library = torch.library.Library("openwork", "FRAGMENT")
_library.define(
    "small_batch_linear(Tensor x, Tensor columns, Tensor values, Tensor ends, Tensor? scales, Tensor? bias, str activation)"
    " -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)


@dataclass(frozen=True, eq=False)
class Octets(inference.Arrangement):
    """A frozen sparse matrix in rows of octets; made by `octet_rows`.

    Attributes:
        shape: (outputs, inputs).
        columns: uint16, or int32 for more than 65535 inputs, [octets, 8]; `inputs` where a row has ended.
        values: float32, bfloat16 or int8 [octets, 8]; zero where a row has ended.
        ends: int64 [outputs + 1]: row r has the octets from ends[r] to ends[r + 1].
        scales: float32 [outputs], of int8 weights.
    """

    shape: tuple[int, int]
    columns: Tensor = field(repr=False)
    values: Tensor = field(repr=False)
    ends: Tensor = field(repr=False)
    scales: Tensor | None = field(default=None, repr=False)


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


def small_batch_linear(
    x: Tensor, octets: Octets, bias: Tensor | None = None, activation: str = "none"
) -> Tensor:
    """`activation(x W^T + bias)`, float32 on the CPU, without gradients.

    Results have the same bits for every number of threads, but not for every batch: the order of additions
    depends on how many nonzeros share a vector.

    Args:
        x: [..., inputs].
        octets: from `octet_rows`.
        bias: [outputs].
        activation: one of `linear.ACTIVATIONS`.

    Returns:
        [..., outputs].
    """
    samples = inference.check_inputs(x, octets.shape, bias, activation)
    compute = (
        torch.ops.openwork.small_batch_linear if linear.is_traced(samples, bias) else _small_batch_linear
    )
    y: Tensor = compute(samples, octets.columns, octets.values, octets.ends, octets.scales, bias, activation)
    return y if x.dim() == 2 else y.view(*x.shape[:-1], octets.shape[0])


def _small_batch_linear(
    x: Tensor,
    columns: Tensor,
    values: Tensor,
    ends: Tensor,
    scales: Tensor | None,
    bias: Tensor | None,
    activation: str,
) -> Tensor:
    outputs = ends.numel() - 1
    if not native.enabled():
        rows = torch.arange(outputs).repeat_interleave(ends.diff() * OCTET)
        return inference.gathered_linear(x, columns, values, rows, bias, outputs, activation, scales)
    x = x.contiguous()
    bias = None if bias is None else bias.contiguous()
    y = x.new_empty(x.shape[0], outputs)
    native.kernels().small_batch_linear(
        x.data_ptr(), y.data_ptr(), x.shape[0], x.shape[1], outputs, columns.data_ptr(), values.data_ptr(),
        ends.data_ptr(), columns.dtype == torch.int32, inference.WEIGHT_DTYPES.index(values.dtype),
        0 if scales is None else scales.data_ptr(),
        0 if bias is None else bias.data_ptr(), linear.ACTIVATIONS.index(activation),
        native.threads(values.numel() * inference.NONZERO_WORK),
    )  # fmt: skip
    return y


_library.impl("small_batch_linear", _small_batch_linear, "CPU")
torch.library.register_fake(
    "openwork::small_batch_linear",
    lambda x, columns, values, ends, scales, bias, activation: x.new_empty(x.shape[0], ends.shape[0] - 1),
    lib=_library,
)
