"""Sorted positions: which ones are in both, where one set stands in another, and both as one.

The connections of a sparse weight are named by sorted int64 positions without repeats, and an update compares
the old ones with the new. Two sorted lists need no binary search: on the CPU they are merged, which costs
time linear in their sizes and hardly misses a cache. Everything takes memory of the size of the lists.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from openwork.kernels import native

_FEW = 16
"""A list so many times shorter than the other is searched for instead of merged."""


def below(positions: Tensor, bounds: Tensor, *, or_at: bool = False) -> Tensor:
    """How many of the sorted ``positions`` lie below each of the sorted ``bounds``.

    Args:
        positions: sorted int64 ``[n]``, may repeat.
        bounds: sorted int64 ``[m]``, may repeat.
        or_at: count those equal to a bound as well.

    Returns:
        int64 ``[m]``, what ``torch.searchsorted`` gives.
    """
    if not _native(positions, bounds) or _FEW * bounds.numel() < positions.numel():
        return torch.searchsorted(positions, bounds, right=or_at)
    positions, bounds, counts = positions.contiguous(), bounds.contiguous(), torch.empty_like(bounds)
    native.library().count_below(
        positions.data_ptr(), positions.numel(), bounds.data_ptr(), bounds.numel(), or_at, counts.data_ptr()
    )
    return counts


def located(positions: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Where the sorted ``wanted`` stand among the sorted ``positions``.

    Returns:
        The index of each (int64, in range wherever there are positions at all, and meaningless where not found), and
        whether it was found (bool).
    """
    if not positions.numel():
        return torch.zeros_like(wanted), torch.zeros_like(wanted, dtype=torch.bool)
    if not _native(positions, wanted) or _FEW * wanted.numel() < positions.numel():
        index = below(positions, wanted).clamp_(max=positions.numel() - 1)
        return index, positions[index] == wanted
    positions, wanted = positions.contiguous(), wanted.contiguous()
    index, found = torch.empty_like(wanted), torch.empty_like(wanted, dtype=torch.bool)
    native.library().locate(
        positions.data_ptr(),
        positions.numel(),
        wanted.data_ptr(),
        wanted.numel(),
        index.data_ptr(),
        found.data_ptr(),
    )
    return index, found


def merged(one: Tensor, other: Tensor) -> Tensor:
    """Two sorted lists as one sorted list; what is in both is there twice."""
    if not _native(one, other):
        return torch.cat([one, other]).sort().values
    one, other = one.contiguous(), other.contiguous()
    both = one.new_empty(one.numel() + other.numel())
    native.library().merge(one.data_ptr(), one.numel(), other.data_ptr(), other.numel(), both.data_ptr())
    return both


def ascending(positions: Tensor) -> Tensor:
    """Positions, none negative, in order."""
    if not _native(positions):
        return positions.sort().values
    positions = positions.contiguous()
    ordered = torch.empty_like(positions)
    native.library().sort(positions.data_ptr(), positions.numel(), ordered.data_ptr())
    return ordered


def where(mask: Tensor) -> Tensor:
    """Sorted int64 positions at which a boolean tensor, read in order, is True."""
    if mask.device.type != "cpu":
        return mask.flatten().nonzero().flatten()
    return torch.from_numpy(np.flatnonzero(mask.numpy()))


def _native(*positions: Tensor) -> bool:
    return native.enabled() and all(p.device.type == "cpu" and p.dtype is torch.int64 for p in positions)
