"""Round to nearest: the baseline of all quantisers."""

from __future__ import annotations

from dataclasses import dataclass

from openwork.calibrator.layer import Layer, Solution
from openwork.calibrator.quantizing import Quantizing, quantized_solution
from openwork.method import method
from openwork.quantization import nearest


@method(paper="baseline; see Yao et al., ZeroQuant, NeurIPS 2022, arXiv 2206.01861", kind="calibrate")
@dataclass(frozen=True, kw_only=True)
class RTN(Quantizing):
    """Move every weight to the nearest level, the groups of a row each with a scale of its own.

    Needs no calibration data beyond what the engine runs for the stages beside it. At 4 bits with groups of 128 a language model
    hardly notices; at 3 bits :class:`openwork.GPTQ` is clearly better.

    - ``grid="int4"``: scale ``(max - min) / 15`` and a zero point of each group, zero included in the range;
    - ``grid="int4-symmetric"``: ``2 max|w| / 15``, zero in the middle;
    - ``grid="int4-clip"``: the range that makes ``sum |error|^2.4`` least among 81 clipped ones;
    - ``grid="e2m1"``: a float.
    """

    def solve(self, layer: Layer) -> Solution:
        return quantized_solution(layer, nearest(layer.weight, self.levels(layer), self.group))
