"""Prune and mend in one sweep over the columns, with the surgeon's rule for what is left."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from openwork.allocation import exact_counts
from openwork.calibrator.contract import Calibrated
from openwork.calibrator.layer import Layer, Solution
from openwork.calibrator.quantizing import quantized_solution
from openwork.method import method
from openwork.patterns import FanIn, Groups, Pattern
from openwork.quantization import Grid, Group
from openwork.quantization.columns import ColumnQuantizer
from openwork.quantization.grouped import groups_of
from openwork.quantization.named import grid
from openwork.reconstruction.sweep import Choose, sweep


@method(
    paper="Frantar, Alistarh, SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot, ICML 2023, "
    "arXiv 2301.00774",
    kind="calibrate",
)
@dataclass(frozen=True, kw_only=True)
class SparseGPT(Calibrated):
    """Go from input to input; drop the weights whose loss costs least, and let those still to come make up for them.

    What it costs to drop a weight is ``w^2 / U_jj^2`` (:func:`openwork.reconstruction.sweep.sweep`), measured on the weights as
    earlier columns have left them. The mask of 128 columns at a time is chosen together, rows competing with one another; with
    n:m, the mask of each group of m. All rows share one factorisation.

    With a ``grid`` it quantises in the same sweep: a weight that stays is rounded when its column's turn comes, and those still
    to come make up for both. Scales of a group are fitted to its weights as the sweep has left them, without those pruned so far.
    Codes are in the parts of the calibration under ``"quantized"``, as those of :class:`openwork.GPTQ`.

    The result is not the best for its mask, because columns that are settled never change again: ``[SparseGPT(...), Refit()]``
    gives that.

    Args:
        damping: added to the diagonal of ``H``, relative to its mean; raised tenfold where the factorisation fails.
        block: inputs whose mask is chosen together. All at once would lose the adaptivity, one at a time would force the same
            sparsity on every input.
        grid: levels with one at zero, by name (:func:`openwork.quantization.grid`) or as a value; None (default) rounds nothing.
            The authors' is ``"int4"``.
        group: consecutive inputs of a row that share a scale, or "row" (the authors').
    """

    needs: ClassVar[frozenset[str]] = frozenset({"gram"})

    damping: float = 0.01
    block: int = 128
    grid: str | Grid | None = None
    group: Group = "row"

    def __post_init__(self) -> None:
        super().__post_init__()
        groups_of(1, self.group)
        if self.group == "tensor":
            raise ValueError(
                "the scale of a whole tensor cannot be fitted on the way: group is a number or 'row'"
            )
        if self.grid is not None and not grid(self.grid).holds_zero:
            raise ValueError(
                f"pruned weights are zero, and {self.grid} has no level there: use zero='integer'"
            )
        if self.damping < 0 or self.block < 1:
            raise ValueError(
                f"damping is at least 0 and block at least 1; got {self.damping} and {self.block}"
            )

    def solve(self, layer: Layer) -> Solution:
        every, choose = _by_slices(layer, self.block)
        factor = layer.inverse_factor(self.damping)
        if self.grid is None:
            swept = sweep(layer.dense, factor, layer.mask, choose=choose, every=every)
            return Solution(swept.weight, swept.mask)
        out, inputs = layer.dense.shape
        rounding = ColumnQuantizer(grid(self.grid), (out, inputs), self.group, like=factor)
        swept = sweep(layer.dense, factor, layer.mask, choose=choose, every=every, quantize=rounding)
        quantized = quantized_solution(replace(layer, mask=swept.mask), rounding.result())
        return replace(quantized, mask=swept.mask)


def _by_slices(layer: Layer, block: int) -> tuple[int, Choose]:
    """The pattern, applied to some inputs at a time: how many columns these have, and the mask of such a slice.

    The counts of the slices sum to what the layer keeps.
    """
    out, inputs, *kernel = layer.shape
    pattern = _of_a_slice(layer)
    step = next(n for n in range(1, inputs + 1) if pattern.misfit((out, n, *kernel)) is None)
    if (
        pattern.legal_kept((out, step, *kernel), 0) == 0
    ):  # n:m keeps its n whatever is asked, in each group of its own
        step *= max(1, round(block / (step * math.prod(kernel))))
    widths = [min(step, inputs - start) for start in range(0, inputs, step)]
    kept = pattern.legal_kept(layer.shape, layer.pattern.legal_kept(layer.shape, layer.kept))
    grids = [pattern.grid((out, n, *kernel)) for n in widths]
    unit = grids[0].rows * grids[0].atom
    share = exact_counts(
        [kept / unit * n / inputs for n in widths], [g.competitors for g in grids], kept // unit
    )

    live = layer.live

    def choose(weights: Tensor, saliency: Tensor, first: int) -> Tensor:
        index = first // (step * math.prod(kernel))
        saliency = torch.where(live[first : first + saliency.shape[1]], saliency, saliency.clamp(max=0))
        scores = saliency.reshape(out, widths[index], *kernel)
        return pattern.choose(scores, share[index] * unit).reshape(saliency.shape)

    return step * math.prod(kernel), choose


def _of_a_slice(layer: Layer) -> Pattern:
    if isinstance(layer.pattern, Groups) and layer.pattern.axis != 1:
        raise ValueError(
            f"SparseGPT chooses from input to input and cannot choose {layer.pattern} of {layer.name}: prune with Wanda or "
            "Magnitude, and mend with ColumnSweep or Refit"
        )
    return replace(layer.pattern, inputs=None) if isinstance(layer.pattern, FanIn) else layer.pattern
