"""Does a packed model compute what the model before did?"""

from __future__ import annotations

from typing import Any

import torch

from openwork.pack.observed import tensors_of

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.int8: 1e-1}
"""By how much of their largest value packing may change the outputs, for each dtype that weights may be rounded to."""


def check_agreement(expected: Any, found: Any, weight_dtype: torch.dtype) -> None:
    """Raise RuntimeError where outputs differ by more than rounding to ``weight_dtype`` explains."""
    tolerance = TOLERANCE[weight_dtype]
    for before, after in zip(tensors_of(expected), tensors_of(found), strict=True):
        scale = before.abs().max().clamp(min=1e-12) if before.numel() else 1.0
        error = float(((before - after).abs().max() / scale).float()) if before.numel() else 0.0
        exact = before.dtype in (torch.float32, torch.float64)
        if not error <= (tolerance if exact else max(tolerance, TOLERANCE[torch.bfloat16])):
            raise RuntimeError(
                f"packing changed the outputs by {error:.2e} of their largest value, more than rounding explains; the model was "
                "put back as it was. Please report this with the model's shapes"
            )
