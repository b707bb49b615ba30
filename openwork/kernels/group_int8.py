"""Groups of 16 inputs in codes of 8 bits: 16 bytes of codes for each group, see :mod:`openwork.kernels.code_groups`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from openwork.kernels import inference
from openwork.kernels.code_groups import GROUP, CodeGroups, check_groups, columns_of, padded

LARGEST_CODE = 255
"""Codes are 0 ... 255."""


@inference.operator
@dataclass(frozen=True, eq=False)
class Int8Groups(CodeGroups):
    """A frozen weight [outputs, inputs] in groups of 8-bit codes; made by `int8_groups`.

    Attributes:
        codes: uint8 [groups + PADDING, 16].
    """

    operator: ClassVar[str] = "group_int8_linear"

    def numbers(self) -> Tensor:
        """The codes themselves."""
        return self.codes[: self.kept].float()


def int8_groups(
    codes: Tensor, scales: Tensor, zeros: Tensor, row_ptr: Tensor, group_col: Tensor, shape: tuple[int, int]
) -> Int8Groups:
    """Check groups at the border and lay them out for the kernel. Later changes of the arguments are not seen.

    Args:
        codes: uint8 [groups, 16].
        scales, zeros, row_ptr, group_col, shape: as :func:`openwork.kernels.group_int4.int4_groups` has them.

    Raises:
        TypeError: other dtypes or devices.
        ValueError: not a topology of groups, sizes that do not agree, or statistics that make weights which are
            not finite.
    """
    check_groups(codes, scales, zeros, row_ptr, group_col, shape, width=GROUP, largest=LARGEST_CODE)
    columns = columns_of(group_col, shape[1])
    return Int8Groups(shape, columns, padded(codes), padded(scales), padded(zeros), row_ptr.long())
