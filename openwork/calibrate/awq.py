"""AWQ: the weights of important input channels are scaled up before they are rounded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from openwork.calibrator.migrating import Migrating
from openwork.folding import Fold
from openwork.method import method
from openwork.quantization import Grid, Group, nearest
from openwork.quantization.grouped import groups_of
from openwork.quantization.named import grid
from openwork.reconstruction.hessian import layer_error
from openwork.statistics import Statistics

POINTS = 20
"""Exponents tried, evenly from 0 to 1 (which is left out), as the authors do."""


@method(
    paper="Lin et al., AWQ: Activation-aware Weight Quantization for On-Device LLM Compression and Acceleration, MLSys 2024, "
    "arXiv 2306.00978",
    kind="calibrate",
)
@dataclass(frozen=True, kw_only=True)
class AWQ(Migrating):
    """Scale each input channel by ``s_j = (mean|X_j|)^a``, with the ``a`` for which rounding the weights harms the outputs least.

    A weight of a channel with large inputs is multiplied by ``s > 1`` before it is rounded and its input divided by ``s``, so its
    rounding error counts ``s`` times less. ``s`` is divided by ``sqrt(max s * min s)``; ``a`` is searched on 20 points from 0,
    where nothing is scaled, to 0.95. The error is that of all layers that read the tensor together.

    The model computes the same as before: follow it with the quantiser it prepared for, such as ``[AWQ(), RTN()]``.

    Args:
        grid, group: of the quantiser that follows.
    """

    gram: ClassVar[bool] = True

    grid: str | Grid = "int4"
    group: Group = 128

    def __post_init__(self) -> None:
        super().__post_init__()
        groups_of(1, self.group)
        grid(self.grid)

    def scales(self, fold: Fold, seen: Statistics) -> Tensor:
        size = seen.absolute / max(1, seen.count)
        found: tuple[float, Tensor] | None = None
        for i in range(POINTS):
            s = torch.where(size > 0, size, 1.0).pow(i / POINTS).clamp(min=1e-4)
            s = s / (s.max() * s.min()).sqrt()
            error = sum(self._error(reader.matrix(), s, seen) for reader in fold.readers)
            if found is None or error < found[0]:
                found = error, s
        assert found is not None
        return found[1]

    def _error(self, weight: Tensor, s: Tensor, seen: Statistics) -> float:
        weight = weight if weight.dtype == torch.float64 else weight.float()
        by = s.to(weight.dtype)
        rounded = nearest(weight * by, grid(self.grid), self.group).dense().to(weight.dtype) / by
        return float(layer_error(rounded - weight, seen.gram))
