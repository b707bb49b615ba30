"""Linear layers whose rows keep groups of 16 inputs, in codes of 4 bits with a scale and a zero for each group.

The sparse unit is the unit of quantisation: a group is absent, or 8 bytes of codes and 4 of statistics. Decoding
language models word by word is bound by the bytes of the weights, so what is not kept is time not spent, and no
hardware for patterns is needed.

Rows go to threads in contiguous shares of about equal numbers of groups. (The paper cuts inside rows too, because a GPU
has more workers than a matrix has rows.)

Paper: Zeng et al., "GQSA: Group Quantization and Sparsity", IJCNLP-AACL 2025, arXiv:2412.17560.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from openwork.kernels import inference
from openwork.kernels.pages import in_large_pages
from openwork.kernels.topology import validate

GROUP = 16
"""Inputs in a group (csrc/kernels/group_int4.cpp)."""

LARGEST_CODE = 15
"""Codes are 0 ... 15."""

STATISTIC_DTYPES = (torch.float16, torch.bfloat16)
"""What scales and zeros may be."""

FEW_SAMPLES = 12
"""From so many on samples lie side by side in tiles, and weights are decoded once for all of a tile."""

PADDING = 64
"""Groups behind the last that may be read."""

CODE_WORK = 4
"""Multiply-adds of a large batch that take about as long as decoding a weight and multiplying it (`native.threads`)."""


@inference.operator
@dataclass(frozen=True, eq=False)
class Int4Groups(inference.Arrangement):
    """A frozen weight [outputs, inputs] in groups of 4-bit codes; made by `int4_groups`.

    Results have the same bits for every number of samples below :data:`FEW_SAMPLES`; above, the order of additions
    depends on how wide a tile they fill. NaN or infinity in an input reaches the outputs that keep its group, also where
    the weight is zero.

    Attributes:
        shape: (outputs, inputs).
        columns: uint16, or int32 where there are more than 65535 groups in a row, [groups + PADDING].
        codes: int64 [groups + PADDING]: bits 4 i ... 4 i + 3 hold code 2 i, bits 32 + 4 i ... the code after it.
        scales: float16 or bfloat16 [groups + PADDING].
        zeros: the same.
        ends: int64 [outputs + 1]: row r has the groups from ends[r] to ends[r + 1].
    """

    operator: ClassVar[str] = "group_int4_linear"

    shape: tuple[int, int]
    columns: Tensor = field(repr=False)
    codes: Tensor = field(repr=False)
    scales: Tensor = field(repr=False)
    zeros: Tensor = field(repr=False)
    ends: Tensor = field(repr=False)

    @property
    def kept(self) -> int:
        """Groups."""
        return self.columns.numel() - PADDING

    def arguments(self) -> tuple[int, ...]:
        """Addresses and types."""
        return (
            self.columns.data_ptr(), self.codes.data_ptr(), self.scales.data_ptr(), self.zeros.data_ptr(),
            self.ends.data_ptr(), self.columns.dtype == torch.int32, self.scales.dtype == torch.bfloat16,
        )  # fmt: skip

    def work(self, samples: int) -> int:
        """Each sample decodes for itself."""
        return (self.kept * GROUP + self.shape[0]) * samples * CODE_WORK

    def twin(self, x: Tensor, bias: Tensor | None, activation: str) -> Tensor:
        """In plain PyTorch."""
        (outputs, inputs), kept = self.shape, self.kept
        inside = self.columns[:kept].long()[:, None] * GROUP + torch.arange(GROUP)
        rows = torch.arange(outputs).repeat_interleave(self.ends.diff() * GROUP)
        in_turn = _in_turn(self.codes[:kept, None].view(torch.uint8))
        weights = decode(in_turn, self.scales[:kept], self.zeros[:kept])
        return inference.gathered_linear(
            x, inside.clamp(max=inputs), weights, rows, bias, outputs, activation
        )


def int4_groups(
    codes: Tensor, scales: Tensor, zeros: Tensor, row_ptr: Tensor, group_col: Tensor, shape: tuple[int, int]
) -> Int4Groups:
    """Check groups at the border and lay them out for the kernel. Later changes of the arguments are not seen.

    Args:
        codes: uint8 [groups, 8]: byte i has code 2 i in its lower and code 2 i + 1 in its upper half (`pack_codes`).
        scales: float16 or bfloat16 [groups].
        zeros: of the same dtype [groups]; they need not be whole numbers. A weight is (code - zero) * scale.
        row_ptr: int32 [outputs + 1]: row r has the groups from row_ptr[r] to row_ptr[r + 1].
        group_col: int32 [groups], ascending in each row: group g covers the inputs 16 * group_col[g] and on. Codes of
            inputs that a shape which is no multiple of 16 does not have are ignored.
        shape: (outputs, inputs).

    Raises:
        TypeError: other dtypes or devices.
        ValueError: not a topology of groups, sizes that do not agree, or statistics that make weights which are
            not finite.
    """
    check_groups(codes, scales, zeros, row_ptr, group_col, shape)

    def padded(array: Tensor) -> Tensor:
        behind = array.new_zeros((PADDING, *array.shape[1:]))
        return in_large_pages(torch.cat([array.detach(), behind]))

    columns = torch.cat([group_col, group_col.new_zeros(PADDING)])
    columns = in_large_pages(columns.to(inference.column_dtype(groups_in(shape[1]))))
    codes = _in_halves(codes).view(torch.int64)[:, 0]
    return Int4Groups(shape, columns, padded(codes), padded(scales), padded(zeros), row_ptr.long())


def _in_halves(codes: Tensor) -> Tensor:
    """Even codes before odd ones, uint8 [groups, 8]."""
    return pack_codes(unpack_codes(codes).unflatten(1, (-1, 2)).mT.flatten(1))


def _in_turn(codes: Tensor) -> Tensor:
    """The inverse of `_in_halves`."""
    return pack_codes(unpack_codes(codes).unflatten(1, (2, -1)).mT.flatten(1))


def check_groups(
    codes: Tensor, scales: Tensor, zeros: Tensor, row_ptr: Tensor, group_col: Tensor, shape: tuple[int, int]
) -> None:
    """Raise unless these are the groups of a weight of `shape`; see `int4_groups`."""
    if min(shape) < 0:
        raise ValueError(f"a weight cannot be {shape[0]} x {shape[1]}.")
    validate(row_ptr, group_col, (shape[0], groups_in(shape[1])), "row_ptr and group_col")
    groups = group_col.numel()
    if codes.dtype != torch.uint8 or codes.shape != (groups, GROUP // 2):
        raise (TypeError if codes.dtype != torch.uint8 else ValueError)(
            f"{groups} groups have codes uint8 [{groups}, {GROUP // 2}], found {codes.dtype} {list(codes.shape)}."
        )
    for name, tensor in (("scales", scales), ("zeros", zeros)):
        if tensor.dtype not in STATISTIC_DTYPES or tensor.dtype != scales.dtype:
            raise TypeError(
                f"scales and zeros are both float16 or both bfloat16, found {scales.dtype} and {zeros.dtype}."
            )
        if tensor.shape != (groups,):
            raise ValueError(f"{name} must be [{groups}], one for each group, found {list(tensor.shape)}.")
    for tensor in (codes, scales, zeros, row_ptr, group_col):
        if tensor.device.type != "cpu":
            raise TypeError(f"Groups of 4-bit codes are held on the CPU, found a tensor on {tensor.device}.")
    largest = scales.detach().float().abs() * (zeros.detach().float().abs() + LARGEST_CODE)
    if not bool(largest.isfinite().all()):
        group = int((~largest.isfinite()).nonzero()[0])
        raise ValueError(
            f"group {group} has the scale {float(scales[group])} and the zero {float(zeros[group])}, which make weights "
            "that are not finite; a group that is to be zero is left out."
        )


def groups_in(inputs: int) -> int:
    """Groups that cover so many inputs."""
    return -(-inputs // GROUP)


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
    """The weights (code - zero) * scale, float32 [groups, 16]; differentiable in scales and zeros."""
    return (unpack_codes(codes).float() - zeros.float()[:, None]) * scales.float()[:, None]
