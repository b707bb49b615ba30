"""Relative importance and activations: no input and no output is starved of connections."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from openwork.calibrator.contract import Calibrated
from openwork.calibrator.layer import Layer, Solution
from openwork.method import method


@method(
    paper="Zhang et al., Plug-and-Play: An Efficient Post-training Pruning Method for Large Language Models, ICLR 2024",
    kind="calibrate",
)
@dataclass(frozen=True, kw_only=True)
class RIA(Calibrated):
    """Keep the largest ``(|w_ij| / sum of its row + |w_ij| / sum of its column) * ||x_j||^a``; no weight changes.

    Magnitude times input norm can delete whole inputs; here a weight counts relative to the others of its row and of its column.
    One threshold a layer (``pattern="unstructured"``, default, as in the source); ``"fan-in"`` compares within each output unit.
    For n:m the source reorders the channels first: :class:`openwork.PermuteChannels`.

    Args:
        power: ``a``, how much the inputs' norms count: 0.5 as in the source; 0 needs no data to speak of.
    """

    power: float = 0.5

    def solve(self, layer: Layer) -> Solution:
        mask = layer.choose(relative_importance(layer.weight) * _norms(layer) ** self.power)
        return Solution(layer.weight * mask, mask)


def relative_importance(weight: Tensor) -> Tensor:
    """``|w_ij| / sum_i |w_ij| + |w_ij| / sum_j |w_ij|`` of a weight ``[out, in]``; 0 in rows and columns of zeros."""
    size = weight.abs()
    by_column, by_row = size.sum(0, keepdim=True), size.sum(1, keepdim=True)
    tiny = size.new_tensor(2.0) ** -120
    return size / by_column.clamp(min=tiny) + size / by_row.clamp(min=tiny)


def _norms(layer: Layer) -> Tensor:
    return layer.statistics.squares.sqrt().to(layer.weight.dtype)
