"""Mend a layer that has been pruned, with the column sweep of SparseGPT."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from openwork.calibrator.contract import Calibrated
from openwork.calibrator.layer import Layer, Solution
from openwork.method import method
from openwork.reconstruction.sweep import sweep


@method(
    paper="Frantar, Alistarh, SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot, ICML 2023, "
    "arXiv 2301.00774",
    kind="calibrate",
)
@dataclass(frozen=True, kw_only=True)
class ColumnSweep(Calibrated):
    """Let the weights that are left make up for those that are gone, in one sweep from left to right; the mask stays.

    The half of :class:`openwork.SparseGPT` that mends, for a mask that was chosen some other way. One factorisation for all rows,
    and no optimum: :class:`openwork.Refit` finds that.

    Args:
        damping: added to the diagonal of ``H``, relative to its mean.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"gram"})
    reads_zeros: ClassVar[bool] = True

    damping: float = 0.01

    def solve(self, layer: Layer) -> Solution:
        return Solution(sweep(layer.dense, layer.inverse_factor(self.damping), layer.mask).weight)
