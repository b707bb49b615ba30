"""GPTQ: quantise column by column, each error pushed on to the columns to come."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from openwork.calibrator.layer import Layer, Solution
from openwork.calibrator.quantizing import Quantizing, quantized_solution
from openwork.method import method
from openwork.quantization.columns import ColumnQuantizer, static
from openwork.reconstruction.hessian import inverse_factor
from openwork.reconstruction.sweep import sweep


@method(
    paper="Frantar, Ashkboos, Hoefler, Alistarh, GPTQ: Accurate Post-Training Quantization for Generative Pre-trained "
    "Transformers, ICLR 2023, arXiv 2210.17323",
    kind="calibrate",
)
@dataclass(frozen=True, kw_only=True)
class GPTQ(Quantizing):
    """Round one column after another, and let the columns to come make up for the error.

    With the upper factor ``U`` of ``inverse(H)``, ``H = X^T X``: ``e = (w_j - q_j) / U[j, j]``, then
    ``W[:, k] -= e U[j, k]`` for ``k > j``. What it costs is exactly ``sum e^2 = tr(D H D^T)``. For a diagonal ``H`` this is
    rounding to nearest.

    In a layer that stages before have pruned, removing and rounding are one sweep: what a pruned weight did is passed on to
    weights that are not yet rounded.

    Args:
        damping: added to the diagonal of ``H``, relative to its mean; 0.01 as the authors'.
        act_order: take columns by decreasing ``H[j, j]``, so that the most important ones are rounded while many others can
            still make up for them. Groups of columns that are no neighbours follow, unless ``static_groups``.
        static_groups: fit the scales of all groups before the sweep, to neighbouring columns of the weight as it is.
        joint: start from the dense weights and the mask; otherwise from the weights as the stages before have left them, which is
            better after an exact refit.
        block: columns between two updates of all the rest; changes only the speed.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"gram"})

    damping: float = 0.01
    act_order: bool = False
    static_groups: bool = False
    joint: bool = True
    block: int = 128

    def solve(self, layer: Layer) -> Solution:
        levels, weight = self.levels(layer), layer.dense if self.joint else layer.weight
        if self.act_order:
            order = by_importance(layer)
            factor = ordered_factor(layer, order, self.damping)
        else:
            order = torch.arange(weight.shape[1], device=weight.device)
            factor = layer.inverse_factor(self.damping)
        beforehand = self.static_groups or self.group == "tensor"
        kept = torch.where(layer.mask, weight, 0)
        at, group_of = static(kept, levels, self.group, order) if beforehand else (None, None)
        rounding = ColumnQuantizer(
            levels, (weight.shape[0], weight.shape[1]), self.group, at, group_of, like=factor
        )
        sweep(weight[:, order], factor, layer.mask[:, order], quantize=rounding, block=self.block)
        return quantized_solution(layer, rounding.result(order))


def by_importance(layer: Layer) -> Tensor:
    """Columns by decreasing ``H[j, j]``, the first of equals first."""
    return layer.statistics.squares.argsort(descending=True, stable=True)


def ordered_factor(layer: Layer, order: Tensor, damping: float) -> Tensor:
    """The inverse factor of a layer whose columns are taken in another order, once for all that read the same tensor."""
    s = layer.statistics
    return s.once(
        ("ordered inverse factor", damping), lambda: inverse_factor(s.gram[order][:, order], damping)
    )
