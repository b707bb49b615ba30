"""Give every output of a compressed layer the size it had."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from openwork.calibrator.contract import Calibrated
from openwork.calibrator.layer import Layer, Solution
from openwork.method import method


@method(
    paper="least squares, a factor for each output; the loss of size: Saikumar, Varghese, Signal Collapse in One-Shot Pruning, "
    "2025, arXiv 2502.15790",
    kind="calibrate",
)
@dataclass(frozen=True, kw_only=True)
class Rescale(Calibrated):
    """Multiply the weights of each output unit by one number, so that its output follows the dense one best; the mask stays.

    A sum of fewer terms is smaller: pruning takes from an output's mean and from what varies around it alike. A norm that comes
    after makes both larger again; a mean that :class:`openwork.BiasCorrect` has restored *alone* is then too large for what
    varies around it. So the two are found together, as the line ``a y + b`` through the points of sparse output ``y`` and dense
    output: ``a = cov(y, dense) / var(y)``, with ``b`` in the bias. A layer without a bias gets the best ``a`` for ``b = 0``. An
    output that is constant keeps its weights.

    One number an output costs nothing, and is the smallest case of :class:`openwork.Refit`, which finds one for every weight.

    Args:
        bias: find ``b`` too, where the layer has a bias.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"gram"})
    reads_zeros: ClassVar[bool] = True

    bias: bool = True

    def solve(self, layer: Layer) -> Solution:
        s = layer.statistics
        sparse, dense = layer.weight.double(), layer.dense.double()
        shifted = self.bias and layer.bias is not None
        gram = s.gram.double()
        if shifted:
            gram = gram - s.count * torch.outer(s.mean, s.mean)
        pulled = sparse @ gram
        size, overlap = (pulled * sparse).sum(1), (pulled * dense).sum(1)
        # what is left of a difference of large numbers is no variance
        varies = size > 1e-9 * ((sparse @ s.gram.double()) * sparse).sum(1)
        factor = torch.where(varies & (size > 0), overlap / size.where(size > 0, 1.0), 1.0)
        weight = (sparse * factor[:, None]).to(layer.weight.dtype)
        if not shifted:
            return Solution(weight)
        before = torch.zeros_like(factor) if layer.dense_bias is None else layer.dense_bias.double()
        bias = before + (dense - weight.double()) @ s.mean
        return Solution(weight, bias=bias.to(layer.dense.dtype))
