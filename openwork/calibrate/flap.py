"""Remove whole inputs that hardly vary, and put their mean into the bias."""

from __future__ import annotations

from dataclasses import dataclass

from openwork.calibrator.contract import Calibrated
from openwork.calibrator.layer import Layer, Solution
from openwork.method import method
from openwork.patterns import Pattern


@method(
    paper="An et al., Fluctuation-based Adaptive Structured Pruning for Large Language Models, AAAI 2024, arXiv 2312.11983",
    kind="calibrate",
)
@dataclass(frozen=True, kw_only=True)
class FLAP(Calibrated):
    """Drop the inputs of smallest ``variance(x_j) * ||W_j||^2``; what they gave on average goes into the bias.

    An input that is constant carries no information: its weights times its mean are a bias. So what an input costs is how much it
    varies, not how large it is. Whole inputs leave (``pattern="groups 1"``), the same for all outputs of a layer; the layers of a
    block that read the same tensor choose each for themselves. The paper's split among layers, where the inputs of all of
    them compete, is ``allocation=ow.Fluctuation()``; it needs the data before anything can be planned.

    Args:
        add: give a bias to layers that have none; otherwise (default) they lose the mean of what is removed.
    """

    pattern: str | Pattern = "groups 1"

    add: bool = False

    def solve(self, layer: Layer) -> Solution:
        fluctuation = layer.statistics.variance.to(layer.weight.dtype) * layer.weight.square()
        mask = layer.choose(fluctuation)
        weight = layer.weight * mask
        if layer.bias is None and not self.add:
            return Solution(weight, mask)
        missing = (layer.weight - weight).double() @ layer.statistics.mean
        bias = missing if layer.bias is None else layer.bias.double() + missing
        return Solution(weight, mask, bias.to(layer.weight.dtype))
