"""Who shares a placement: all weights of a matrix, those of a row, or runs of so many inputs of a row."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from openwork.quantization.codes import packed_bytes
from openwork.quantization.grids import Grid, Loss, Placement

Group = int | Literal["row", "tensor"]
"""Consecutive inputs of a row that share a placement; "row" is all of them, "tensor" all weights of all rows."""


@dataclass(frozen=True)
class Quantized:
    """A weight ``[out, in]`` as codes.

    Attributes:
        grid: of the levels.
        codes: uint8 ``[out, in]``.
        at: scales and zeros ``[out, groups]``, or ``[1, 1]`` for a whole tensor.
        group_of: int64 ``[in]``, the group of each input.
    """

    grid: Grid
    codes: Tensor
    at: Placement
    group_of: Tensor

    def placement(self) -> Placement:
        """Where the levels of every weight lie, ``[out, in]`` or ``[1, in]``."""
        return self.at[:, self.group_of]

    def dense(self) -> Tensor:
        """The weight ``[out, in]``, of the dtype of the scales."""
        return self.grid.decode(self.codes, self.placement())

    def single(self) -> Quantized:
        """The same with placements in float32, which hold what is stored exactly."""
        return replace(self, at=Placement(self.at.scale.float(), self.at.zero.float()))

    @property
    def bits_per_weight(self) -> float:
        """Bits of the codes and of their placements, without what fills the last byte of a row."""
        return self.grid.bits + self.at.scale.numel() * self.grid.placement_bits / max(1, self.codes.numel())

    @property
    def nbytes(self) -> int:
        """Bytes of codes packed row by row, and of the placements."""
        rows, inputs = self.codes.shape
        groups = self.at.scale.numel()
        return rows * packed_bytes(inputs, self.grid.bits) + -(-groups * self.grid.placement_bits // 8)


def groups_of(inputs: int, group: Group) -> Tensor:
    """The group of each input, int64 ``[inputs]``. The last group may be short."""
    if isinstance(group, str):
        if group not in ("row", "tensor"):
            raise ValueError(f"a group is a number of inputs, 'row' or 'tensor'; got {group!r}")
        return torch.zeros(inputs, dtype=torch.int64)
    if group < 1:
        raise ValueError(f"a group has at least one input; got {group}")
    return torch.arange(inputs) // group


def fit(weight: Tensor, grid: Grid, group: Group = "row", loss: Loss | None = None) -> Placement:
    """Placements ``[out, groups]`` of a weight ``[out, in]`` (``[1, 1]`` for group="tensor").

    Args:
        weight: finite; not changed.
        grid: the levels.
        group: who shares a placement. A last, shorter group is fitted to what it has.
        loss: see :meth:`Grid.fit`.
    """
    if group == "tensor":
        at = grid.fit(weight.reshape(1, -1), loss)
        return Placement(at.scale.view(1, 1), at.zero.view(1, 1))
    rows, inputs = weight.shape
    size = inputs if isinstance(group, str) else group
    whole = inputs - inputs % size if size else 0
    parts = []
    if whole:
        parts.append(grid.fit(weight[:, :whole].reshape(rows, -1, size), loss))
    if whole < inputs:
        tail = grid.fit(weight[:, whole:], loss)
        parts.append(Placement(tail.scale[:, None], tail.zero[:, None]))
    if not parts:
        raise ValueError(f"a weight {rows} x {inputs} has nothing to quantise")
    return Placement(torch.cat([p.scale for p in parts], 1), torch.cat([p.zero for p in parts], 1))


def nearest(weight: Tensor, grid: Grid, group: Group = "row", at: Placement | None = None) -> Quantized:
    """Round a weight ``[out, in]`` to the nearest levels.

    Args:
        weight: finite; not changed.
        grid: the levels.
        group: who shares a placement.
        at: placements to use instead of fitting them, ``[out, groups]``.
    """
    group_of = groups_of(weight.shape[1], group).to(weight.device)
    at = fit(weight, grid, group) if at is None else at
    return Quantized(grid, grid.encode(weight, at[:, group_of]), at, group_of)
