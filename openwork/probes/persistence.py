"""Shape of a weighted layer: what holds together when only its strongest connections are drawn.

Draw the connections of a layer one by one, from the largest ``|w| / max |w|`` down. Units are there from the start; each
connection either joins two parts of the graph or closes a cycle. A part that is joined at level ``w`` has lived ``1 - w``;
``beta_0`` counts parts and ``beta_1`` independent cycles. Such fingerprints do not depend on the order of units, and compare
layers of different sizes (Rieck et al., Neural Persistence, ICLR 2019, arXiv 1812.09764; Ballester & Rieck, On the Expressivity
of Persistent Homology in Graph Learning, 2023, arXiv 2302.09826).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Persistence:
    """What happened while the connections of a layer were drawn. Made by :func:`persistence`.

    Attributes:
        units: vertices of the graph.
        levels: ``[connections]``, the strength of each, descending, in [0, 1].
        parts: ``beta_0`` after each of them.
        cycles: ``beta_1`` after each of them.
        lifetimes: of the parts that were joined to others.
    """

    units: int
    levels: Tensor
    parts: Tensor
    cycles: Tensor
    lifetimes: Tensor

    @property
    def neural(self) -> float:
        """Neural persistence: the norm of the lifetimes, divided by ``sqrt(units - 1)``; in [0, 1]."""
        return float(self.lifetimes.norm()) / math.sqrt(max(1, self.units - 1))


def persistence(weight: Tensor, *, idle: bool = False) -> Persistence:
    """Draw a layer from its strongest connection down; zeros are never drawn.

    Args:
        weight: ``[out, in]``, finite; not changed.
        idle: count units without connections as parts too.
    """
    if weight.dim() != 2:
        raise ValueError(f"persistence is of a matrix [out, in]; got a weight {list(weight.shape)}")
    if not bool(weight.isfinite().all()):
        raise ValueError("a weight with NaN or infinity has no strongest connections")
    strength = weight.detach().abs().double().cpu()
    outputs, inputs = strength.nonzero(as_tuple=True)
    drawn = strength[outputs, inputs]
    order = drawn.argsort(descending=True, stable=True)
    levels = drawn[order] / drawn.max() if len(drawn) else drawn
    edges = torch.stack([outputs, inputs + len(strength)], 1)[order]
    units = sum(strength.shape) if idle else len(edges.unique())
    parents = list(range(sum(strength.shape)))
    parts, lifetimes, joined = [], [], 0
    for level, (one, other) in zip(levels.tolist(), edges.tolist(), strict=True):
        a, b = _root(parents, one), _root(parents, other)
        if a != b:
            parents[a] = b
            joined += 1
            lifetimes.append(1.0 - level)
        parts.append(units - joined)
    beta_0 = torch.tensor(parts, dtype=torch.int64)
    beta_1 = torch.arange(1, len(parts) + 1) - units + beta_0
    return Persistence(units, levels, beta_0, beta_1, torch.tensor(lifetimes, dtype=torch.float64))


def _root(parents: list[int], unit: int) -> int:
    while parents[unit] != unit:
        parents[unit] = parents[parents[unit]]  # halve the way for whoever comes next
        unit = parents[unit]
    return unit
