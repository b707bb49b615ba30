"""The same bits: what a model holds, and where it differs from what it held."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from openwork.testing.registry import BrokenPromise


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    """A copy of every parameter and buffer, by name."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def require_same(
    one: Mapping[str, Tensor],
    other: Mapping[str, Tensor],
    where: str,
    but: set[str] | frozenset[str] = frozenset(),
) -> None:
    """Break the promise where a tensor of ``one``, except those named in ``but``, differs from that of ``other`` in a bit."""
    for name, tensor in one.items():
        if name not in but and not _same_bits(tensor, other[name]):
            changed = (
                int((tensor != other[name]).sum()) if tensor.shape == other[name].shape else tensor.numel()
            )
            raise BrokenPromise(f"{changed} of {tensor.numel()} values of {name} differ {where}")


def _same_bits(one: Tensor, other: Tensor) -> bool:
    same = (one == other) | ((one != one) & (other != other)) if one.shape == other.shape else torch.zeros(1)
    return one.dtype == other.dtype and bool(same.all())
