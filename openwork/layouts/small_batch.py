"""Unstructured rows in octets of nonzeros: for 1 to 16 samples."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from openwork.kernels import small_batch as kernel
from openwork.layouts.arranged import Arranged
from openwork.layouts.csr import CSR
from openwork.layouts.layout import layout

MOST_DENSITY = 2 / 3
"""Above, the six bytes of a nonzero are more than the four of every weight of a dense matrix."""


@layout
class Octets(Arranged):
    """CSR with rows filled up to multiples of eight nonzeros, and columns of 16 bits where possible.

    Suits any topology; made for batches that do not fill a vector, and rows of several nonzeros.
    """

    name: ClassVar[str] = "octets"

    arrange = staticmethod(kernel.octet_rows)

    @classmethod
    def unsuited(cls, topology: CSR, values: Tensor, batch: int) -> str | None:
        if wrong := cls.unsuited_to(values):
            return wrong
        if batch > kernel.LARGEST_BATCH:
            return f"it is made for at most {kernel.LARGEST_BATCH} samples, not {batch}"
        if topology.density > MOST_DENSITY:
            return f"at a density of {topology.density:.2f} it takes more bytes than the dense matrix"
        return None


@layout
class BFloat16Octets(Octets):
    """The same with weights rounded to bfloat16: two bytes less for each. Inputs, products and sums are float32."""

    name: ClassVar[str] = "octets bf16"
    weight_dtype: ClassVar[torch.dtype] = torch.bfloat16


@layout
class Int8Octets(Octets):
    """The same with weights rounded to int8, and a scale for each row. Inputs, products and sums are float32."""

    name: ClassVar[str] = "octets int8"
    weight_dtype: ClassVar[torch.dtype] = torch.int8
