"""Shared columns: unstructured rows four at a time, whose columns often coincide at moderate sparsity.

At half density a column that one of four rows keeps is kept by 2.1 of them on average, and its activation is
loaded once for all. The gain over plain rows is gone at a quarter of the density.
"""

from __future__ import annotations

from typing import ClassVar, Self

from torch import Tensor

from openwork.kernels.shared_columns import HEIGHT, shared_columns
from openwork.layouts.csr import CSR
from openwork.layouts.held import Held
from openwork.layouts.layout import layout

DENSITIES = (0.25, 0.85)
"""Below, rows share too little; above, dense kernels are as fast."""

SMALLEST_BATCH = 16
"""Samples from which on vectors of samples are full."""


@layout
class SharedColumns(Held):
    """Groups of four rows, their columns sorted by which of the four keep them."""

    name: ClassVar[str] = "shared columns"

    @classmethod
    def unsuited(cls, topology: CSR, values: Tensor, batch: int) -> str | None:
        if wrong := cls.unsuited_to(values):
            return wrong
        if batch < SMALLEST_BATCH:
            return f"it wants batches of {SMALLEST_BATCH} and more"
        if topology.shape[0] < HEIGHT:
            return f"it takes rows {HEIGHT} at a time"
        low, high = DENSITIES
        if not low <= topology.density <= high:
            return f"it suits densities of {low} to {high}, not {topology.density:.3g}"
        return None

    @classmethod
    def build(cls, topology: CSR, values: Tensor, batch: int) -> Self:
        return cls(shared_columns(topology.crow, topology.col, values.float(), topology.shape))
