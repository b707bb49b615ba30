"""Choose gradually and mend at once, by alternating directions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from openwork.calibrator.contract import Calibrated
from openwork.calibrator.layer import Layer, Solution
from openwork.method import method
from openwork.reconstruction.admm import admm


@method(
    paper="Boza, Fast and Effective Weight Update for Pruned Large Language Models, TMLR 2024, arXiv 2401.02938",
    kind="calibrate",
)
@dataclass(frozen=True, kw_only=True)
class ADMM(Calibrated):
    """Prune a little more in each of some iterations, and find the best weights for what is left meanwhile.

    One factorisation for all rows, as in SparseGPT, but the weights of *all* kept connections make up for what goes, so the
    result is within a tenth of a percent of the optimum for its mask. Competes on magnitude in units where every input has norm
    one, which is Wanda's score of weights that have been mended. Helps most at high sparsity.

    Args:
        iterations: in all; 20 as in the source.
        gradual: those in which the mask still changes. In the ``t``-th, ``1 - (1 - t / gradual)^3`` of what is to be pruned is.
        rho: how strongly the two copies of the weights are pulled together; changes the speed, not the limit.
        damping: added to the diagonal of ``H``, relative to its mean. The paper adds 0.1 in units where each input has norm one.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"gram"})

    iterations: int = 20
    gradual: int = 15
    rho: float = 1.0
    damping: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.gradual <= self.iterations:
            raise ValueError(f"1 <= gradual <= iterations; got {self.gradual} and {self.iterations}")
        if self.rho <= 0 or self.damping < 0:
            raise ValueError(f"rho is above 0 and damping at least 0; got {self.rho} and {self.damping}")

    def solve(self, layer: Layer) -> Solution:
        weight, mask = admm(
            layer.dense,
            layer.normalized(self.damping),
            layer.mask,
            choose=layer.choose,
            steps=self.iterations,
            gradual=self.gradual,
            rho=self.rho,
        )
        return Solution(weight, mask)
