"""Unstructured rows in pairs of bfloat16 nonzeros: for batches of 16 and more, on processors with a bfloat16 dot product."""

from __future__ import annotations

from typing import ClassVar, Self

import torch
from torch import Tensor

from openwork.kernels import pairs as kernel
from openwork.layouts.csr import CSR
from openwork.layouts.layout import Layout, layout

SMALLEST_BATCH = 16
"""Samples from which on vectors of samples are at least half full."""


@layout
class Pairs(Layout):
    """CSR in blocks of columns, two nonzeros to a word. Suits any topology; inputs are rounded to bfloat16 too."""

    name: ClassVar[str] = "pairs bf16"
    weight_dtype: ClassVar[torch.dtype] = torch.bfloat16
    input_dtypes = (torch.float32, torch.bfloat16)

    def __init__(self, held: kernel.Pairs) -> None:
        self.held = held

    @classmethod
    def unsuited(cls, topology: CSR, values: Tensor, batch: int) -> str | None:
        if wrong := cls.unsuited_to(values):
            return wrong
        if not kernel.available():
            return "this machine has no instruction for dot products of bfloat16"
        if batch < SMALLEST_BATCH:
            return f"it wants batches of {SMALLEST_BATCH} and more"
        if topology.shape[1] > kernel.MOST_INPUTS:
            return f"it can name {kernel.MOST_INPUTS} inputs, not {topology.shape[1]}"
        return None

    @classmethod
    def build(cls, topology: CSR, values: Tensor, batch: int) -> Self:
        return cls(kernel.pair_up(values.float(), topology.crow, topology.col, topology.shape))

    def compute(self, x: Tensor, bias: Tensor | None, activation: str) -> Tensor:
        if x.dtype not in self.input_dtypes:
            return super().compute(x, bias, activation)
        return self.linear(x, None if bias is None else bias.float(), activation)

    def linear(self, x: Tensor, bias: Tensor | None, activation: str) -> Tensor:
        return kernel.pairs_linear(x, self.held, bias, activation)

    @property
    def nbytes(self) -> int:
        return self.held.nbytes
