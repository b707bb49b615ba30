"""The best weights for the connections that are left."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from openwork.calibrator.contract import Calibrated
from openwork.calibrator.layer import Layer, Solution
from openwork.method import method
from openwork.reconstruction.gradient import conjugate_gradients
from openwork.reconstruction.least_squares import least_squares

SMALL = 2e10
"""Multiplications up to which all rows are solved exactly: some seconds."""


@method(
    paper="least squares; for masks: Hubara et al., AdaPrune, NeurIPS 2021, arXiv 2102.08124",
    kind="calibrate",
)
@dataclass(frozen=True, kw_only=True)
class Refit(Calibrated):
    """Give the kept weights of every layer the values that reproduce the dense layer's outputs best; the mask stays.

    Each output unit is a least-squares problem of its own. No method with the same mask has a smaller error on the calibration
    data, which is what it is measured against; with fewer tokens than inputs that data is all it fits, so raise ``damping`` then.

    Args:
        solver: ``"exact"`` factorises once for each distinct mask of a row; ``"gradient"`` takes conjugate gradients to
            convergence, all rows at once; ``"auto"`` is exact where that takes no more than some seconds.
        damping: added to the diagonal of ``H``, relative to its mean.
        steps: of conjugate gradients, at most.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"gram"})
    reads_zeros: ClassVar[bool] = True

    solver: Literal["auto", "exact", "gradient"] = "auto"
    damping: float = 0.01
    steps: int = 300

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.solver not in ("auto", "exact", "gradient"):
            raise ValueError(f"solver is 'auto', 'exact' or 'gradient'; got {self.solver!r}")
        if self.damping < 0:
            raise ValueError(f"damping is at least 0; got {self.damping}")

    def solve(self, layer: Layer) -> Solution:
        gram = layer.statistics.gram
        work = float(layer.mask.sum(1).double().pow(3).sum()) / 3
        if self.solver == "exact" or (self.solver == "auto" and work <= SMALL):
            return Solution(least_squares(layer.dense, gram, layer.mask, self.damping))
        found = conjugate_gradients(
            layer.dense, gram, layer.mask, layer.weight, damping=self.damping, steps=self.steps
        )
        return Solution(found)
