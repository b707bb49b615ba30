"""Sorted positions: which ones are in both, where one set stands in another, and both as one.

The connections of a sparse weight are named by sorted int64 positions without repeats, and an update compares
the old ones with the new. Two sorted lists need no binary search: on the CPU they are merged, which costs
time linear in their sizes and hardly misses a cache. Everything takes memory of the size of the lists.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

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
    if positions.device.type != "cpu" or _FEW * bounds.numel() < positions.numel():
        return torch.searchsorted(positions, bounds, right=or_at)
    first, second = (positions, bounds) if or_at else (bounds, positions)
    # NumPy's stable sort finds the two ascending runs and merges them; equal numbers stay in the order given.
    order = np.argsort(np.concatenate([first.numpy(), second.numpy()]), kind="stable")
    is_bound = order >= len(first) if or_at else order < len(first)
    return torch.from_numpy(np.flatnonzero(is_bound)) - torch.arange(bounds.numel())


def located(positions: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Where the sorted ``wanted`` stand among the sorted ``positions``.

    Returns:
        The index of each (int64, in range wherever there are positions at all, and meaningless where not found), and
        whether it was found (bool).
    """
    if not positions.numel():
        return torch.zeros_like(wanted), torch.zeros_like(wanted, dtype=torch.bool)
    index = below(positions, wanted).clamp_(max=positions.numel() - 1)
    return index, positions[index] == wanted


def merged(one: Tensor, other: Tensor) -> Tensor:
    """Two sorted lists as one sorted list; what is in both is there twice."""
    if one.device.type != "cpu":
        return torch.cat([one, other]).sort().values
    return torch.from_numpy(np.sort(np.concatenate([one.numpy(), other.numpy()]), kind="stable"))


def where(mask: Tensor) -> Tensor:
    """Sorted int64 positions at which a boolean tensor, read in order, is True."""
    if mask.device.type != "cpu":
        return mask.flatten().nonzero().flatten()
    return torch.from_numpy(np.flatnonzero(mask.numpy()))
