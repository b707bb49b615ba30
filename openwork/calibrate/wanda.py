"""Prune by weights and activations: a weight counts for as much as the input it multiplies."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from openwork.calibrator.contract import Calibrated, Layer, Solution
from openwork.method import method
from openwork.patterns import Pattern


@method(
    paper="Sun, Liu, Bair, Kolter, A Simple and Effective Pruning Approach for Large Language Models, ICLR 2024, "
    "arXiv 2306.11695",
    kind="calibrate",
)
@dataclass(frozen=True, kw_only=True)
class Wanda(Calibrated):
    """Keep the largest ``|w_ij| * ||x_j||`` of every output unit; no weight changes.

    An input feature with a large norm makes its weights matter. One forward pass, and on language models at 50 % nearly the
    quality of methods that solve for new weights.

    - within each output unit: ``pattern="fan-in"`` (default, and clearly better on language models);
    - within each layer: ``pattern="unstructured"`` (as good or better on image classifiers);
    - n:m: ``pattern="2:4"``.

    With all inputs equally large this is magnitude pruning; multiplying the inputs by a factor, or moving one from the inputs
    into the weights, changes nothing.
    """

    pattern: str | Pattern = "fan-in"

    def solve(self, layer: Layer) -> Solution:
        mask = layer.choose(wanda_scores(layer))
        return Solution(layer.weight * mask, mask)


def wanda_scores(layer: Layer) -> Tensor:
    """``|w_ij| * ||x_j||``, with the norm over all tokens."""
    return layer.weight.abs() * layer.statistics.squares.sqrt().to(layer.weight.dtype)
