"""Linear layers for a few samples at moderate sparsity: one bit for every position, kept values packed.

Between half and four fifths zeros, it costs more to find the inputs of the nonzeros than to multiply all of
them: inputs are read in order, and the packed weights are spread over the lanes that the bits name. The time
does not depend on the sparsity; the bytes read do, and weights that come from memory are read at its speed.
Rows go in groups of four, whose masks for 16 columns are one word.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from openwork.kernels import inference, linear, native
from openwork.kernels.pages import in_large_pages
from openwork.kernels.topology import row_of

GROUP_ROWS = 4
"""Rows in a group (csrc/kernels/bitmasked.cpp)."""

MASK_BITS = 16
"""Columns in a block (csrc/expand.h)."""

VALUE_PADDING = 16
"""Values behind the last that may be read."""

LARGEST_BATCH = 6
"""Samples computed together with AVX-512 (2 below); larger batches go in pieces."""

_library = torch.library.Library("openwork", "FRAGMENT")
_library.define(
    "bitmasked_linear(Tensor x, Tensor masks, Tensor values, Tensor first, Tensor? scales, Tensor? bias, SymInt outputs,"
    " str activation) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)


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

    shape: tuple[int, int]
    masks: Tensor = field(repr=False)
    values: Tensor = field(repr=False)
    first: Tensor = field(repr=False)
    scales: Tensor | None = field(default=None, repr=False)


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


def bitmasked_linear(
    x: Tensor, bitmasked: Bitmasked, bias: Tensor | None = None, activation: str = "none"
) -> Tensor:
    """`activation(x W^T + bias)`, float32 on the CPU, without gradients; the same bits for every number of
    threads.

    Args:
        x: [..., inputs].
        bitmasked: from `bitmask_rows`.
        bias: [outputs].
        activation: one of `linear.ACTIVATIONS`.

    Returns:
        [..., outputs].
    """
    outputs = bitmasked.shape[0]
    samples = inference.check_inputs(x, bitmasked.shape, bias, activation)
    compute = torch.ops.openwork.bitmasked_linear if linear.is_traced(samples, bias) else _bitmasked_linear
    y: Tensor = compute(
        samples,
        bitmasked.masks,
        bitmasked.values,
        bitmasked.first,
        bitmasked.scales,
        bias,
        outputs,
        activation,
    )
    return y if x.dim() == 2 else y.view(*x.shape[:-1], outputs)


def _bitmasked_linear(
    x: Tensor,
    masks: Tensor,
    values: Tensor,
    first: Tensor,
    scales: Tensor | None,
    bias: Tensor | None,
    outputs: int,
    activation: str,
) -> Tensor:
    if not native.enabled():
        rows, columns = positions(masks)
        return inference.gathered_linear(
            x, columns, values[: rows.numel()], rows, bias, outputs, activation, scales
        )
    x = x.contiguous()
    bias = None if bias is None else bias.contiguous()
    y = x.new_empty(x.shape[0], outputs)
    native.kernels().bitmasked_linear(
        x.data_ptr(), y.data_ptr(), x.shape[0], x.shape[1], outputs, masks.data_ptr(), values.data_ptr(),
        first.data_ptr(), inference.WEIGHT_DTYPES.index(values.dtype),
        0 if scales is None else scales.data_ptr(), 0 if bias is None else bias.data_ptr(),
        linear.ACTIVATIONS.index(activation),
        native.threads(masks.numel() * GROUP_ROWS * MASK_BITS * x.shape[0]),
    )  # fmt: skip
    return y


def positions(masks: Tensor) -> tuple[Tensor, Tensor]:
    """(row, column) of every bit, int64, in the order of the values."""
    bits = torch.bitwise_right_shift(masks[:, :, None], torch.arange(GROUP_ROWS * MASK_BITS)) & 1
    group, block, bit = bits.nonzero(as_tuple=True)
    return group * GROUP_ROWS + bit // MASK_BITS, block * MASK_BITS + bit % MASK_BITS


_library.impl("bitmasked_linear", _bitmasked_linear, "CPU")
torch.library.register_fake(
    "openwork::bitmasked_linear",
    lambda x, masks, values, first, scales, bias, outputs, activation: x.new_empty(x.shape[0], outputs),
    lib=_library,
)
