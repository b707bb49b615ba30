"""Choose the mask by alternating directions whose pull grows until the mask stands still."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from openwork.calibrator.contract import Calibrated
from openwork.calibrator.layer import Layer, Solution
from openwork.method import method
from openwork.reconstruction.admm import alps
from openwork.reconstruction.gradient import conjugate_gradients


@method(
    paper="Meng, Behdin, Wang, Mazumder, ALPS: Improved Optimization for Highly Sparse One-Shot Pruning for Large Language "
    "Models, NeurIPS 2024, arXiv 2406.07831",
    kind="calibrate",
)
@dataclass(frozen=True, kw_only=True)
class ALPS(Calibrated):
    """Search the mask and the weights together: project, solve, and pull the two closer the more the mask still changes.

    All connections are candidates in every iteration, so the mask can correct early mistakes. One eigendecomposition serves every
    strength of the pull. In the end, some steps of conjugate gradients on what is kept. Slower than :class:`openwork.ADMM`, and
    ahead of it at high sparsity.

    Args:
        iterations: at most; 300 as in the source.
        rho: how strongly the two copies of the weights are pulled together to begin with.
        refine: steps of conjugate gradients at the end.
        damping: added to the diagonal of ``H``, relative to its mean.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"gram"})

    iterations: int = 300
    rho: float = 0.1
    refine: int = 10
    damping: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.iterations < 1 or self.refine < 0 or self.rho <= 0 or self.damping < 0:
            raise ValueError(
                "iterations is at least 1, refine at least 0, rho above 0 and damping at least 0; got "
                f"{self.iterations}, {self.refine}, {self.rho} and {self.damping}"
            )

    def solve(self, layer: Layer) -> Solution:
        weight, mask = alps(
            layer.dense,
            layer.normalized(self.damping),
            layer.choose,
            mask=layer.mask,
            steps=self.iterations,
            rho=self.rho,
        )
        refined = conjugate_gradients(
            layer.dense,
            layer.statistics.gram,
            mask & layer.mask,
            weight,
            damping=self.damping,
            steps=self.refine,
            tolerance=1e-4,
        )
        return Solution(refined, mask)
