"""Linear layers whose rows keep groups of 16 inputs, in codes of a few bits with a scale and a zero for each group.

The sparse unit is the unit of quantisation: a group is absent, or a run of codes and its statistics. Decoding language models
word by word is bound by the bytes of the weights, so what is not kept is time not spent, and no hardware for patterns is needed.

Rows go to threads in contiguous shares of about equal numbers of groups. (The paper cuts inside rows too, because a GPU
has more workers than a matrix has rows.)

What a code is, and how codes lie in memory, is said by :mod:`openwork.kernels.group_int4` and :mod:`openwork.kernels.group_int8`.

Paper: Zeng et al., "GQSA: Group Quantization and Sparsity", IJCNLP-AACL 2025, arXiv:2412.17560.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field

import torch
from torch import Tensor

from openwork.kernels import inference
from openwork.kernels.pages import in_large_pages
from openwork.kernels.topology import validate

GROUP = 16
"""Inputs in a group (csrc/code_groups.h)."""

STATISTIC_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
"""What scales and zeros may be (csrc/code_groups.h has the same order)."""

FEW_SAMPLES = 12
"""From so many on samples lie side by side in tiles, and weights are decoded once for all of a tile."""

PADDING = 64
"""Groups behind the last that may be read."""

CODE_WORK = 4
"""Multiply-adds of a large batch that take about as long as decoding a weight and multiplying it (`native.threads`)."""


@dataclass(frozen=True, eq=False)
class CodeGroups(inference.Arrangement):
    """A frozen weight [outputs, inputs] in groups of codes: (number of the code - zero) * scale.

    Results have the same bits for every number of samples below :data:`FEW_SAMPLES`; above, the order of additions
    depends on how wide a tile they fill. NaN or infinity in an input reaches the outputs that keep its group, also where
    the weight is zero.

    Attributes:
        shape: (outputs, inputs).
        columns: uint16, or int32 where there are more than 65535 groups in a row, [groups + PADDING].
        codes: of 16 inputs each, [groups + PADDING, ...].
        scales: float16, bfloat16 or float32 [groups + PADDING].
        zeros: the same.
        ends: int64 [outputs + 1]: row r has the groups from ends[r] to ends[r + 1].
    """

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

    @abstractmethod
    def numbers(self) -> Tensor:
        """What the codes of the kept groups stand for, float32 [groups, 16]."""

    def arguments(self) -> tuple[int, ...]:
        """Addresses and types."""
        return (
            self.columns.data_ptr(), self.codes.data_ptr(), self.scales.data_ptr(), self.zeros.data_ptr(),
            self.ends.data_ptr(), self.columns.dtype == torch.int32, STATISTIC_DTYPES.index(self.scales.dtype),
        )  # fmt: skip

    def work(self, samples: int) -> int:
        """Each sample decodes for itself."""
        return (self.kept * GROUP + self.shape[0]) * samples * CODE_WORK

    def twin(self, x: Tensor, bias: Tensor | None, activation: str) -> Tensor:
        """In plain PyTorch."""
        (outputs, inputs), kept = self.shape, self.kept
        inside = self.columns[:kept].long()[:, None] * GROUP + torch.arange(GROUP)
        rows = torch.arange(outputs).repeat_interleave(self.ends.diff() * GROUP)
        weights = placed(self.numbers(), self.scales[:kept], self.zeros[:kept])
        return inference.gathered_linear(
            x, inside.clamp(max=inputs), weights, rows, bias, outputs, activation
        )


def placed(numbers: Tensor, scales: Tensor, zeros: Tensor) -> Tensor:
    """The weights (number - zero) * scale, float32 [groups, 16]; differentiable in scales and zeros."""
    return (numbers - zeros.float()[:, None]) * scales.float()[:, None]


def padded(array: Tensor) -> Tensor:
    """[groups, ...] with what may be read behind the last."""
    behind = array.new_zeros((PADDING, *array.shape[1:]))
    return in_large_pages(torch.cat([array.detach(), behind]))


def columns_of(group_col: Tensor, inputs: int) -> Tensor:
    """The first inputs of groups, in groups, as the kernels read them."""
    columns = torch.cat([group_col, group_col.new_zeros(PADDING)])
    return in_large_pages(columns.to(inference.column_dtype(groups_in(inputs))))


def check_groups(
    codes: Tensor,
    scales: Tensor,
    zeros: Tensor,
    row_ptr: Tensor,
    group_col: Tensor,
    shape: tuple[int, int],
    *,
    width: int,
    largest: float,
) -> None:
    """Raise unless these are the groups of a weight of `shape`.

    Args:
        codes: uint8 [groups, width].
        scales, zeros: [groups], of one of :data:`STATISTIC_DTYPES`.
        row_ptr, group_col: a topology of groups, int32.
        shape: (outputs, inputs).
        width: bytes of the codes of a group.
        largest: magnitude of the numbers that codes stand for.

    Raises:
        TypeError: other dtypes or devices.
        ValueError: not a topology of groups, sizes that do not agree, or statistics that make weights which are
            not finite.
    """
    if min(shape) < 0:
        raise ValueError(f"a weight cannot be {shape[0]} x {shape[1]}.")
    validate(row_ptr, group_col, (shape[0], groups_in(shape[1])), "row_ptr and group_col")
    groups = group_col.numel()
    if codes.dtype != torch.uint8 or codes.shape != (groups, width):
        raise (TypeError if codes.dtype != torch.uint8 else ValueError)(
            f"{groups} groups have codes uint8 [{groups}, {width}], found {codes.dtype} {list(codes.shape)}."
        )
    for name, tensor in (("scales", scales), ("zeros", zeros)):
        if tensor.dtype not in STATISTIC_DTYPES or tensor.dtype != scales.dtype:
            raise TypeError(
                "scales and zeros are both float16, both bfloat16 or both float32, "
                f"found {scales.dtype} and {zeros.dtype}."
            )
        if tensor.shape != (groups,):
            raise ValueError(f"{name} must be [{groups}], one for each group, found {list(tensor.shape)}.")
    for tensor in (codes, scales, zeros, row_ptr, group_col):
        if tensor.device.type != "cpu":
            raise TypeError(f"Groups of codes are held on the CPU, found a tensor on {tensor.device}.")
    reached = scales.detach().float().abs() * (zeros.detach().float().abs() + largest)
    if not bool(reached.isfinite().all()):
        group = int((~reached.isfinite()).nonzero()[0])
        raise ValueError(
            f"group {group} has the scale {float(scales[group])} and the zero {float(zeros[group])}, which make weights "
            "that are not finite; a group that is to be zero is left out."
        )


def groups_in(inputs: int) -> int:
    """Groups that cover so many inputs."""
    return -(-inputs // GROUP)
