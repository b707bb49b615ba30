"""Are two tensors the same, bit for bit?"""

from __future__ import annotations

import torch
from torch import Tensor

from openwork.kernels import native


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether contiguous tensors on the CPU have the same dtype, shape and bits: NaN equals NaN, and 0 is not -0."""
    if a.dtype is not b.dtype or a.shape != b.shape:
        return False
    if native.enabled():
        return bool(native.library().same_bytes(a.data_ptr(), b.data_ptr(), a.nbytes))
    return a.numel() == 0 or torch.equal(a.view(torch.uint8), b.view(torch.uint8))
