"""Groups of 16 inputs in codes of 4 bits: 8 bytes of codes for each group, see :mod:`openwork.kernels.code_groups`.

A code stands for itself, or for one of 16 numbers of a table, as small floats have it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from openwork.kernels import inference
from openwork.kernels.code_groups import GROUP, CodeGroups, columns_of, padded, placed
from openwork.kernels.code_groups import check_groups as check_code_groups

LARGEST_CODE = 15
"""Codes are 0 ... 15."""

WHOLE_NUMBERS = torch.arange(LARGEST_CODE + 1, dtype=torch.float32, device="cpu")
"""What the codes of integers stand for; not to be written to."""


@inference.operator
@dataclass(frozen=True, eq=False)
class Int4Groups(CodeGroups):
    """A frozen weight [outputs, inputs] in groups of 4-bit codes; made by `int4_groups`.

    Attributes:
        codes: int64 [groups + PADDING]: bits 4 i ... 4 i + 3 hold code 2 i, bits 32 + 4 i ... the code after it.
        levels: float32 [16], the number that each code stands for; None where that is the code.
    """

    operator: ClassVar[str] = "group_int4_linear"

    levels: Tensor | None = field(default=None, repr=False)

    def arguments(self) -> tuple[int, ...]:
        """The table as well, and whether codes stand for themselves."""
        levels = WHOLE_NUMBERS if self.levels is None else self.levels
        return *super().arguments(), levels.data_ptr(), self.levels is None

    def numbers(self) -> Tensor:
        """Looked up."""
        in_turn = _in_turn(self.codes[: self.kept, None].view(torch.uint8))
        codes = unpack_codes(in_turn)
        return codes.float() if self.levels is None else self.levels[codes.long()]


def int4_groups(
    codes: Tensor,
    scales: Tensor,
    zeros: Tensor,
    row_ptr: Tensor,
    group_col: Tensor,
    shape: tuple[int, int],
    levels: Tensor | None = None,
) -> Int4Groups:
    """Check groups at the border and lay them out for the kernel. Later changes of the arguments are not seen.

    Args:
        codes: uint8 [groups, 8]: byte i has code 2 i in its lower and code 2 i + 1 in its upper half (`pack_codes`).
        scales: float16, bfloat16 or float32 [groups].
        zeros: of the same dtype [groups]; they need not be whole numbers. A weight is (number - zero) * scale.
        row_ptr: int32 [outputs + 1]: row r has the groups from row_ptr[r] to row_ptr[r + 1].
        group_col: int32 [groups], ascending in each row: group g covers the inputs 16 * group_col[g] and on. Codes of
            inputs that a shape which is no multiple of 16 does not have are ignored.
        shape: (outputs, inputs).
        levels: [16], the numbers that codes stand for, finite; the codes themselves if None.

    Raises:
        TypeError: other dtypes or devices.
        ValueError: not a topology of groups, sizes that do not agree, or statistics that make weights which are
            not finite.
    """
    numbers = WHOLE_NUMBERS if levels is None else levels.detach().to(torch.float32, copy=True)
    if numbers.shape != (LARGEST_CODE + 1,) or not bool(numbers.isfinite().all()):
        raise ValueError(f"codes of 4 bits stand for 16 finite numbers, found {numbers.tolist()}.")
    arrays = codes, scales, zeros, row_ptr, group_col
    check_code_groups(*arrays, shape, width=GROUP // 2, largest=float(numbers.abs().max()))
    words = padded(_in_halves(codes).view(torch.int64)[:, 0])
    columns, table = columns_of(group_col, shape[1]), None if levels is None else numbers
    return Int4Groups(shape, columns, words, padded(scales), padded(zeros), row_ptr.long(), table)


def check_groups(
    codes: Tensor, scales: Tensor, zeros: Tensor, row_ptr: Tensor, group_col: Tensor, shape: tuple[int, int]
) -> None:
    """Raise unless these are the groups of a weight of `shape`; see `int4_groups`."""
    arrays = codes, scales, zeros, row_ptr, group_col
    check_code_groups(*arrays, shape, width=GROUP // 2, largest=LARGEST_CODE)


def _in_halves(codes: Tensor) -> Tensor:
    """Even codes before odd ones, uint8 [groups, 8]."""
    return pack_codes(unpack_codes(codes).unflatten(1, (-1, 2)).mT.flatten(1))


def _in_turn(codes: Tensor) -> Tensor:
    """The inverse of `_in_halves`."""
    return pack_codes(unpack_codes(codes).unflatten(1, (2, -1)).mT.flatten(1))


def pack_codes(codes: Tensor) -> Tensor:
    """Codes 0 ... 15 [groups, 16] (any integers) as uint8 [groups, 8].

    Raises:
        ValueError: another shape, or codes out of range.
    """
    if codes.dim() != 2 or codes.shape[1] != GROUP:
        raise ValueError(f"codes must be [groups, {GROUP}], found {list(codes.shape)}.")
    if codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) <= LARGEST_CODE:
        raise ValueError(
            f"codes of 4 bits are 0 ... {LARGEST_CODE}, found {int(codes.min())} ... {int(codes.max())}."
        )
    codes = codes.to(torch.uint8)
    return codes[:, ::2] | codes[:, 1::2] << 4


def unpack_codes(packed: Tensor) -> Tensor:
    """The inverse of `pack_codes`: uint8 [groups, 16]."""
    return torch.stack([packed & LARGEST_CODE, packed >> 4], 2).flatten(1)


def decode(codes: Tensor, scales: Tensor, zeros: Tensor) -> Tensor:
    """The weights (code - zero) * scale of packed codes, float32 [groups, 16]; differentiable in scales and zeros."""
    return placed(unpack_codes(codes).float(), scales, zeros)
