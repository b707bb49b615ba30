"""SmoothQuant: outliers of activations move into the weights, which take them more easily."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from openwork.calibrator.migrating import Migrating
from openwork.folding import Fold
from openwork.method import check_fraction, method
from openwork.statistics import Statistics


@method(
    paper="Xiao et al., SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language Models, ICML 2023, "
    "arXiv 2211.10438",
    kind="calibrate",
)
@dataclass(frozen=True, kw_only=True)
class SmoothQuant(Migrating):
    """Scale each input channel by ``s_j = max|X_j|^a / max_i |W_ij|^(1 - a)``: ``x / s``, ``W s``.

    At ``a = 0.5`` weights and activations share the difficulty of a channel equally: both then have the maximum
    ``sqrt(max|X_j| max|W_j|)``. Layers that read the same tensor share ``s``. The model computes the same as before; what follows
    quantises it with less harm, to activations of 8 bits above all.

    Args:
        strength: ``a``, how much of the difficulty goes to the weights; the authors' 0.5.
    """

    strength: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fraction("strength", self.strength)

    def scales(self, fold: Fold, seen: Statistics) -> Tensor:
        weight = torch.stack([reader.matrix().abs().amax(0) for reader in fold.readers]).amax(0).double()
        s = seen.maximum.pow(self.strength) / weight.pow(1 - self.strength)
        return torch.where((seen.maximum > 0) & (weight > 0), s, 1.0)
