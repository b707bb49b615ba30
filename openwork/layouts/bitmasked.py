"""One bit for every position and the kept values packed: for 1 to 6 samples at moderate sparsity."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from openwork.kernels import bitmasked as kernel
from openwork.kernels import native
from openwork.layouts.arranged import Arranged
from openwork.layouts.csr import CSR
from openwork.layouts.layout import layout

LEAST_DENSITY = 0.08
"""Below, walking over the bits of all positions takes longer than looking up the few that are kept."""

MOST_DENSITY = 1 - 1 / 32
"""Above, the bits take more than the zeros they save."""


@layout
class Bitmasked(Arranged):
    """Bits in groups of four rows, values behind them in the same order.

    Suits any topology of moderate sparsity; made for few samples, on processors that spread packed weights
    over lanes.
    """

    name: ClassVar[str] = "bitmask"

    arrange = staticmethod(kernel.bitmask_rows)

    @classmethod
    def unsuited(cls, topology: CSR, values: Tensor, batch: int) -> str | None:
        if wrong := cls.unsuited_to(values):
            return wrong
        if native.isa() == "portable":
            return "this machine has no instruction that spreads packed weights over lanes"
        most = 2 if native.isa() == "avx2" else kernel.LARGEST_BATCH
        if batch > most:
            return f"it is made for at most {most} samples, not {batch}"
        if not LEAST_DENSITY <= topology.density <= MOST_DENSITY:
            return f"it is made for moderate sparsity, not for a density of {topology.density:.3f}"
        return None


@layout
class BFloat16Bitmasked(Bitmasked):
    """The same with weights rounded to bfloat16: two bytes less for each. Inputs, products and sums are float32."""

    name: ClassVar[str] = "bitmask bf16"
    weight_dtype: ClassVar[torch.dtype] = torch.bfloat16


@layout
class Int8Bitmasked(Bitmasked):
    """The same with weights rounded to int8, and a scale for each row. Inputs, products and sums are float32."""

    name: ClassVar[str] = "bitmask int8"
    weight_dtype: ClassVar[torch.dtype] = torch.int8
