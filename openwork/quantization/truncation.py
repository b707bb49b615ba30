"""Which values are outliers, found coarse to fine.

Coarse: magnitudes above ``Q3 + 1.5 (Q3 - Q1)`` of their quartiles may be. Fine: of all ways to split those by size, the best
makes ``(least outlier - largest reserved)^2 - weight * variance of the reserved`` large: a wide gap above a compact rest.

Paper: Ding et al., CBQ, ICLR 2025, arXiv 2312.07950.
"""

from __future__ import annotations

import torch
from torch import Tensor


def largest_reserved(values: Tensor, weight: float = 1.0) -> float:
    """The largest magnitude that is no outlier; that of all where there are none.

    Args:
        values: any shape, finite.
        weight: of the variance of what is reserved; the authors' ``lambda_2 = 1``.
    """
    v = values.detach().flatten().double().abs().sort().values
    n = v.numel()
    if n < 4:
        return float(v[-1]) if n else 0.0
    q1, q3 = float(v[(n - 1) // 4]), float(v[(3 * (n - 1)) // 4])
    first = int((v <= q3 + 1.5 * (q3 - q1)).sum())
    if first == n:
        return float(v[-1])
    kept = torch.arange(first, n, dtype=torch.float64)  # how many are reserved
    mean = v.cumsum(0)[first - 1 : n - 1] / kept
    variance = v.square().cumsum(0)[first - 1 : n - 1] / kept - mean.square()
    merit = (v[first:] - v[first - 1 : n - 1]).square() - weight * variance
    return float(v[first - 1 + int(merit.argmax())])


def truncated(weight: Tensor, factor: float = 1.0) -> Tensor:
    """``weight`` with its outliers cut to the largest magnitude that is reserved."""
    limit = largest_reserved(weight, factor)
    return weight.clamp(-limit, limit)
