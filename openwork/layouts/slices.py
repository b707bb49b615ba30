"""Unstructured rows, or rows of constant fan-in, side by side in slices of 16: for single samples."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from openwork.kernels import slices as kernel
from openwork.layouts.arranged import Arranged
from openwork.layouts.csr import CSR
from openwork.layouts.layout import layout

LARGEST_BATCH = 2
"""Samples go one after the other, so that more of them are better served by the layouts for small batches."""

MOST_DENSITY = 2 / 3
"""Above, the six bytes of a nonzero are more than the four of every weight of a dense matrix."""

MOST_PADDING = 1.5
"""Entries for each nonzero, above which rows differ too much in length to lie side by side."""


@layout
class Slices(Arranged):
    """Sliced ELL: rows sorted by length, 16 side by side, columns of 16 bits where possible.

    Suits any topology whose rows are not all too different; made for one sample. With constant fan-in it has
    no padding.
    """

    name: ClassVar[str] = "slices"

    arrange = staticmethod(kernel.slice_rows)

    @classmethod
    def unsuited(cls, topology: CSR, values: Tensor, batch: int) -> str | None:
        if wrong := cls.unsuited_to(values):
            return wrong
        if batch > LARGEST_BATCH:
            return f"it takes samples one by one, which is slow for {batch}"
        if topology.density > MOST_DENSITY:
            return f"at a density of {topology.density:.2f} it takes more bytes than the dense matrix"
        entries = kernel.padded_entries(topology.crow)
        if entries > MOST_PADDING * topology.kept + kernel.SLICE_ROWS**2:
            return f"rows of {topology.kept} nonzeros would be filled up to {entries} entries"
        return None


@layout
class BFloat16Slices(Slices):
    """The same with weights rounded to bfloat16: two bytes less for each. Inputs, products and sums are float32."""

    name: ClassVar[str] = "slices bf16"
    weight_dtype: ClassVar[torch.dtype] = torch.bfloat16


@layout
class Int8Slices(Slices):
    """The same with weights rounded to int8, and a scale for each row. Inputs, products and sums are float32."""

    name: ClassVar[str] = "slices int8"
    weight_dtype: ClassVar[torch.dtype] = torch.int8
