"""Dynamic sparse no training: swap connections until the mean error of each output is gone; no weight changes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from openwork.calibrator.contract import Calibrated
from openwork.calibrator.layer import Layer, Solution
from openwork.method import method
from openwork.patterns import NM


@method(
    paper="Zhang et al., Dynamic Sparse No Training: Training-Free Fine-tuning for Sparse LLMs, ICLR 2024, arXiv 2310.08915",
    kind="calibrate",
)
@dataclass(frozen=True, kw_only=True)
class DSnoT(Calibrated):
    """In each output unit, grow the pruned weight that best cancels the expected error of the output, and drop the kept one of
    opposite effect and smallest Wanda score.

    The expected error is ``e = sum of w_j mean(x_j)`` over pruned weights. Growing ``g`` takes its contribution from ``e``; the
    choice prefers inputs of low variance. Dropping ``p`` adds its contribution, which has the opposite sign. A row stops when
    ``|e|`` is small, when a swap would overshoot, or when nothing is left to swap; with n:m, the two come from the same group.

    It looks at the mean of the error, not at its energy: with inputs of zero mean it does nothing useful, and
    :class:`openwork.BiasCorrect` removes the same mean at no cost. Always compare the two, and with :class:`openwork.Rescale`:
    before a layer norm, the mean alone can do harm.

    Args:
        swaps: per output unit, at most.
        tolerance: stop where ``|e|`` is below this, in units of the standard deviation of the output unit's dense output (inputs
            taken as uncorrelated).
        power: of the variance in the choice of what grows.
        same_sign: reject a swap after which ``e`` has the other sign, or is larger (default; the published code allows it, and
            over-corrects).
    """

    reads_zeros: ClassVar[bool] = True

    swaps: int = 50
    tolerance: float = 1e-3
    power: float = 1.0
    same_sign: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.swaps < 0 or self.tolerance < 0:
            raise ValueError(f"swaps and tolerance are at least 0; got {self.swaps} and {self.tolerance}")

    def solve(self, layer: Layer) -> Solution:
        mask = self._swapped(layer)
        return Solution(torch.where(layer.mask, layer.weight, layer.dense).masked_fill(~mask, 0), mask)

    def _swapped(self, layer: Layer) -> Tensor:
        s = layer.statistics
        dense = layer.dense.double()
        frozen = torch.where(layer.mask, layer.weight.double(), dense)
        effect = frozen * s.mean
        spread = s.variance.clamp(min=1e-12 * float(s.variance.max()) or 1.0)
        gain = effect / spread**self.power
        cost = frozen.abs() * s.squares.sqrt()
        enough = self.tolerance * (dense.square() @ s.variance).sqrt()
        groups = _groups(layer)
        mask, candidates = layer.mask.clone(), ~layer.mask & (effect != 0)
        error = (dense - layer.weight.double()) @ s.mean
        sign = error.sign()
        active = torch.arange(len(mask), device=mask.device)
        for _ in range(self.swaps):
            active = active[(error[active].abs() > enough[active]) & (error[active] != 0)]
            if not len(active):
                break
            now = error[active].sign()[:, None]
            wanted = torch.where(candidates[active], now * gain[active], -torch.inf)
            best, grown = wanted.max(1)
            same = now * effect[active] < 0 if groups is None else groups == groups[grown][:, None]
            against = layer.mask[active] & mask[active] & same
            least, dropped = torch.where(against, cost[active], torch.inf).min(1)
            after = error[active] - effect[active, grown] + effect[active, dropped]
            good = (best > 0) & least.isfinite()
            if self.same_sign:
                good &= (after.sign() == sign[active]) & (after.abs() <= error[active].abs())
            active, grown, dropped = active[good], grown[good], dropped[good]
            mask[active, grown], mask[active, dropped] = True, False
            candidates[active, grown] = False
            error[active] = after[good]
        return mask


def _groups(layer: Layer) -> Tensor | None:
    """The group of n:m that each column belongs to; None where all columns of a row may be swapped."""
    if not isinstance(layer.pattern, NM):
        return None
    grid = layer.pattern.grid((1, *layer.shape[1:]))
    positions = torch.arange(layer.dense.shape[1], device=layer.dense.device)
    return grid.atoms_of(positions) // grid.competitors
