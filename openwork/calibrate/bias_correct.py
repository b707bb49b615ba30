"""What a compressed layer gets wrong on average, put into its bias."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from openwork.calibrator.contract import Calibrated
from openwork.calibrator.layer import Layer, Solution
from openwork.method import method


@method(
    paper="classical; Nagel et al., Data-Free Quantization Through Weight Equalization and Bias Correction, ICCV 2019, "
    "arXiv 1906.04721",
    kind="calibrate",
)
@dataclass(frozen=True, kw_only=True)
class BiasCorrect(Calibrated):
    """Add ``(W_dense - W) mean(x)`` to the bias: the mean output on the calibration data is then exactly the dense one.

    Costs nothing, and is the honest competitor of everything that repairs a pruned layer. It belongs after the stages that change
    weights. An input that is constant can be removed with no error at all.

    Where weights are only taken away and a layer norm comes after, it can do harm: what varies has become smaller too, and the
    norm then lets through more of the mean. :class:`openwork.Rescale` restores both.

    Args:
        add: give a bias to layers that have none, which changes what the model's class and its files have to hold; otherwise
            (default) such layers are left as they are.
    """

    reads_zeros: ClassVar[bool] = True

    add: bool = False

    def solve(self, layer: Layer) -> Solution:
        if layer.bias is None and not self.add:
            return Solution(layer.weight)
        missing = (layer.dense - layer.weight).double() @ layer.statistics.mean
        before = torch.zeros_like(missing) if layer.dense_bias is None else layer.dense_bias.double()
        return Solution(layer.weight, bias=(before + missing).to(layer.dense.dtype))
