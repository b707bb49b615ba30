"""Matrices that list where their nonzeros are, run by run: what octets and squares are."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from openwork.kernels import inference


@dataclass(frozen=True, eq=False)
class Listed(inference.Arrangement):
    """A frozen sparse matrix whose rows, one or several at a time, have runs of columns and values.

    Attributes:
        shape: (outputs, inputs).
        columns: uint16 or int32.
        values: float32, bfloat16 or int8.
        ends: int64: where each run ends and the next begins.
        scales: float32 [outputs], of int8 weights.
    """

    shape: tuple[int, int]
    columns: Tensor = field(repr=False)
    values: Tensor = field(repr=False)
    ends: Tensor = field(repr=False)
    scales: Tensor | None = field(default=None, repr=False)

    def arguments(self) -> tuple[int, ...]:
        """Addresses and types, in the order that both kernels take them."""
        return (
            self.columns.data_ptr(), self.values.data_ptr(), self.ends.data_ptr(), self.columns.dtype == torch.int32,
            inference.WEIGHT_DTYPES.index(self.values.dtype), inference.address(self.scales),
        )  # fmt: skip
