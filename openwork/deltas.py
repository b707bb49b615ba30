"""What fine-tuning adds: deltas ``tuned - base``, thinned and put together.

Functions of tensors, in float64, where the difference of two float32 numbers of like size is exact: base and delta give back the
very bits of what was tuned.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def delta(tuned: Tensor, base: Tensor) -> Tensor:
    """``tuned - base`` in float64."""
    return tuned.detach().double() - base.detach().double()


def added(base: Tensor, change: Tensor) -> Tensor:
    """``base + change``, in the dtype of the base."""
    return (base.detach().double() + change).to(base.dtype)


def thinned(change: Tensor, mask: Tensor, rescale: float = 1.0) -> Tensor:
    """The delta where ``mask`` is True, divided by ``rescale``, and zero elsewhere.

    With a random mask of a share ``q`` of all places and ``rescale=q`` the expectation over masks is the delta itself.
    """
    return torch.where(mask, change / rescale, 0)


def elected(changes: Sequence[Tensor]) -> Tensor:
    """The sign that wins at each place: that of the sum of all deltas (TIES); 0 where they cancel."""
    return torch.stack(list(changes)).sum(0).sign()


def agreeing_mean(changes: Sequence[Tensor]) -> Tensor:
    """At each place the mean of the deltas that have the elected sign; zeros do not vote (TIES).

    Yadav et al., TIES-Merging, NeurIPS 2023, arXiv 2306.01708.
    """
    sign = elected(changes)
    agree = [(change.sign() == sign) & (change != 0) for change in changes]
    total = torch.stack([torch.where(a, change, 0) for a, change in zip(agree, changes, strict=True)]).sum(0)
    return total / torch.stack(agree).sum(0).clamp(min=1)
