"""CBQ's preparation of activations: only the channels that hold outliers give some of their scale to the weights."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from openwork.calibrator.migrating import Migrating
from openwork.folding import Fold
from openwork.method import method
from openwork.quantization.truncation import largest_reserved
from openwork.statistics import Statistics


@method(
    paper="Ding et al., CBQ: Cross-Block Quantization for Large Language Models, ICLR 2025, arXiv 2312.07950 (coarse-to-fine "
    "pre-processing)",
    kind="calibrate",
)
@dataclass(frozen=True, kw_only=True)
class CoarseToFine(Migrating):
    """Divide outlier channels by ``s_j = sqrt(max|X_j| / m)``, ``m`` the largest channel that is no outlier; leave the others.

    Outliers are found among the largest magnitudes of the channels, coarse to fine (:mod:`openwork.quantization.truncation`). The
    model computes the same as before.

    Args:
        compactness: weight of the variance of what is no outlier; the authors' ``lambda_2 = 1``.
    """

    compactness: float = 1.0

    def scales(self, fold: Fold, seen: Statistics) -> Tensor:
        most = largest_reserved(seen.maximum, self.compactness)
        return torch.where(seen.maximum > most, (seen.maximum / max(most, 1e-30)).sqrt(), 1.0)
