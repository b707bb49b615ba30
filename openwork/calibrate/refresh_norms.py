"""Tell batch norms what a compressed network looks like from inside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from openwork.calibrator.batches import Batches
from openwork.calibrator.contract import ModelCalibrated
from openwork.method import method
from openwork.scores import Loss, run


@method(
    paper="Saikumar, Varghese, Signal Collapse in One-Shot Pruning: When Sparse Models Fail to Distinguish Neural "
    "Representations, 2025, arXiv 2502.15790 (REFLOW)",
    kind="calibrate",
)
@dataclass(frozen=True, kw_only=True)
class RefreshNorms(ModelCalibrated):
    """Take the means and variances of all batch norms anew, from one pass of the calibration data; no weight changes.

    A pruned convolution returns less than the batch norm behind it expects: the mean is off, and so much of the variance is
    gone, layer after layer, that deep networks cannot tell their inputs apart. With the statistics of the network as it now is,
    the norm restores both. They are averages over all batches, each counted alike, so batches should be of one size and as
    large as memory allows. What a norm has learned, its gain and bias, stays.

    The last stage of a recipe, for networks with batch norms; where there are none, nothing happens, and the calibration's
    parts name those that were refreshed. Layer norms take their statistics from each input, and need :class:`openwork.Rescale`.
    """

    def solve_model(
        self, model: nn.Module, masks: Mapping[str, Tensor], data: Sequence[Any], loss: Loss | None
    ) -> Mapping[str, Any]:
        norms = {
            name: module
            for name, module in model.named_modules()
            if isinstance(module, _BatchNorm) and module.track_running_stats
        }
        momenta = {name: norm.momentum for name, norm in norms.items()}
        batches = Batches(data)
        try:
            for norm in norms.values():
                norm.reset_running_stats()
                norm.momentum = None  # an average over all batches
                norm.train()
            with torch.no_grad():
                for index in range(len(batches)) if norms else ():
                    run(model, batches[index])
        finally:
            for name, norm in norms.items():
                norm.momentum = momenta[name]
                norm.eval()
        return {"refreshed": sorted(norms)}
