"""Linear layers in bfloat16 for large batches: two nonzeros of a row at a time, with the bfloat16 dot instruction.

Weights and inputs have 8 bits of mantissa, sums are float32. Half the bytes of the inputs and half the instructions of
the float32 kernel, on processors that have AVX512-BF16 (`available`); for others there is `frozen`, which computes the
same in float32.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from openwork.kernels import inference, linear, native
from openwork.kernels.execution import is_traced
from openwork.kernels.index import FIRST_LEVEL_CACHE, TILE_WIDTH, part_count
from openwork.kernels.pages import in_large_pages

MOST_INPUTS = 2**16 - 1
"""Columns that 16 bits can name, with the one behind the last."""

PADDING = 256 + 8
"""Pairs behind the last part that may be read ahead."""

_library = torch.library.Library("openwork", "FRAGMENT")
_library.define(
    "pairs_linear(Tensor x, Tensor pairs, Tensor starts, Tensor[] walk, Tensor? bias, SymInt outputs,"
    " str activation) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)


@dataclass(frozen=True, eq=False)
class Pairs:
    """A frozen sparse matrix in pairs of nonzeros; made by `pair_up`.

    Attributes:
        shape: (outputs, inputs).
        pairs: int64: two bfloat16 weights in the lower half, their columns in the upper. A run of an odd number ends
            in a zero that points behind the last input, at zeros.
        starts: int64 [parts], the first pair of each part.
        walk: runs, buckets and parts, as in `index.Prepared`.
    """

    shape: tuple[int, int]
    pairs: Tensor = field(repr=False)
    starts: Tensor = field(repr=False)
    walk: list[Tensor] = field(repr=False)

    @property
    def nbytes(self) -> int:
        """Bytes it holds."""
        return sum(tensor.nbytes for tensor in (self.pairs, self.starts, *self.walk))


def available() -> bool:
    """Whether this machine, at the level in use, has the instruction."""
    return native.enabled() and hasattr(native.kernels(), "pairs_linear")


def pair_up(values: Tensor, crow: Tensor, col: Tensor, shape: tuple[int, int]) -> Pairs:
    """Lay out `values` [kept] (float32, CPU), rounded to bfloat16. Later changes of `values` are not seen.

    Args:
        values: [kept], in CSR order.
        crow: int32 [outputs + 1].
        col: int32 [kept].
        shape: (outputs, inputs), at most 65535 inputs.

    Raises:
        ValueError: not a CSR matrix of this shape, or too many inputs.
        TypeError: other dtypes or devices.
        RuntimeError: the level in use has no bfloat16 dot instruction.
    """
    inference.check_weights(values, crow, col, shape, torch.bfloat16)
    outputs, inputs = shape
    if inputs > MOST_INPUTS:
        raise ValueError(f"16 bits name at most {MOST_INPUTS} inputs, not {inputs}.")
    if not available():
        raise RuntimeError(
            "the instruction set level in use has no bfloat16 dot product: use frozen.freeze on rounded weights."
        )
    crow, col, kept = crow.contiguous(), col.contiguous(), col.numel()
    block = block_columns(outputs, inputs, kept)
    runs, buckets, parts = torch.ops.openwork.plan_runs(crow, col, outputs, inputs, block, part_count(kept))

    count = int(parts[-1, 1])
    first, length = runs[:count, 1].long(), runs[:count, 2].long()
    size = (length + 1) // 2
    ends = size.cumsum(0)
    begins = torch.cat([ends.new_zeros(1), ends])
    run = torch.arange(count).repeat_interleave(size)
    one = first[run] + 2 * (torch.arange(run.numel()) - begins[run])
    alone = one + 1 == first[run] + length[run]

    weight = values.detach().bfloat16().view(torch.int16).long() & 0xFFFF
    weight, column = (
        torch.cat([weight, weight.new_zeros(1)]),
        torch.cat([col.long(), col.new_full((1,), inputs)]),
    )
    two = torch.where(alone, kept, one + 1)
    pairs = weight[one] | weight[two] << 16 | column[one] << 32 | column[two] << 48
    pairs = in_large_pages(torch.cat([pairs, pairs.new_zeros(PADDING)]))
    return Pairs(shape, pairs, begins[parts[:-1, 1].long()], [runs, buckets, parts])


def block_columns(rows: int, columns: int, kept: int) -> int:
    """Columns per block: as `index.block_columns`, for tiles of half the size."""
    block = FIRST_LEVEL_CACHE // (TILE_WIDTH * 2)
    return block if kept * block >= 4 * rows * columns else max(1, columns)


def pairs_linear(x: Tensor, pairs: Pairs, bias: Tensor | None = None, activation: str = "none") -> Tensor:
    """`activation(x W^T + bias)` on the CPU, without gradients; the same bits for every number of threads.

    Args:
        x: [..., inputs], bfloat16, or float32 which is rounded to it.
        pairs: from `pair_up`.
        bias: float32 [outputs].
        activation: one of `linear.ACTIVATIONS`.

    Returns:
        [..., outputs], of the dtype of `x`. Activation functions see the float32 sum.

    Raises:
        TypeError: other dtypes or devices.
        ValueError: shapes do not fit, or an unknown activation.
        RuntimeError: a gradient would be needed.
    """
    outputs, inputs = pairs.shape
    linear.check_linear(x, inputs, outputs, bias, activation)
    if x.dtype not in (torch.float32, torch.bfloat16) or not x.is_cpu:
        raise TypeError(f"x must be bfloat16 or float32 on the CPU, found {x.dtype} on {x.device}.")
    if bias is not None and (bias.dtype is not torch.float32 or not bias.is_cpu):
        raise TypeError(f"bias must be float32 on the CPU, found {bias.dtype} on {bias.device}.")
    if torch.is_grad_enabled() and (x.requires_grad or (bias is not None and bias.requires_grad)):
        raise RuntimeError(
            "Pairs have no gradients: call under torch.no_grad(), or train with linear.sparse_linear."
        )
    samples = x if x.dim() == 2 else x.reshape(x.shape[:-1].numel(), inputs)
    compute = torch.ops.openwork.pairs_linear if is_traced(samples, bias) else _pairs_linear
    y: Tensor = compute(samples, pairs.pairs, pairs.starts, pairs.walk, bias, outputs, activation)
    return y if x.dim() == 2 else y.view(*x.shape[:-1], outputs)


def _pairs_linear(
    x: Tensor,
    pairs: Tensor,
    starts: Tensor,
    walk: list[Tensor],
    bias: Tensor | None,
    outputs: int,
    activation: str,
) -> Tensor:
    runs, buckets, parts = walk
    x, bias = x.contiguous(), None if bias is None else bias.contiguous()
    y = x.new_empty(x.shape[0], outputs)
    native.kernels().pairs_linear(
        x.data_ptr(), y.data_ptr(), x.shape[0], x.shape[1], outputs, x.dtype == torch.bfloat16,
        0 if bias is None else bias.data_ptr(), linear.ACTIVATIONS.index(activation), pairs.data_ptr(),
        starts.data_ptr(), runs.data_ptr(), buckets.data_ptr(), parts.data_ptr(), buckets.shape[0], buckets.shape[1],
        native.threads((pairs.numel() + x.shape[1] + outputs) * x.shape[0]),
    )  # fmt: skip
    return y


_library.impl("pairs_linear", _pairs_linear, "CPU")
torch.library.register_fake(
    "openwork::pairs_linear",
    lambda x, pairs, starts, walk, bias, outputs, activation: x.new_empty(x.shape[0], outputs),
    lib=_library,
)
